//! Charts as SVG, drawn on the server and coloured by the style sheet. A chart has a title and a description for
//! those who do not see it; the table next to it has the numbers.

mod bars;
mod control;
mod progress;
mod spark;
mod strip;

use std::fmt::{Arguments, Write};

pub(super) use self::bars::bars;
pub(super) use self::control::{Point, control_chart};
pub(super) use self::progress::{Report, progress_chart};
pub(super) use self::spark::spark;
pub(super) use self::strip::{Stretch, strip};

/// A drawing in the making.
struct Svg(String);

impl Svg {
    /// A drawing of so many units, scaled to its place on the page. `name` tells it from the page's others.
    fn new(class: &str, name: &str, (width, height): (f64, f64), title: &str, text: &str) -> Svg {
        // A chart of words keeps its proportions; one without is stretched.
        let fit = match class {
            "chart" => "",
            _ => r#" preserveAspectRatio="none""#,
        };
        let mut svg = Svg(String::with_capacity(1_024));
        svg.put(format_args!(
            r#"<svg class="{class}" viewBox="0 0 {width} {height}"{fit} role="img" aria-labelledby="{name}-title {name}-text">"#
        ));
        svg.put(format_args!(
            r#"<title id="{name}-title">{}</title><desc id="{name}-text">{}</desc>"#,
            escaped(title),
            escaped(text)
        ));
        svg
    }

    fn put(&mut self, what: Arguments<'_>) {
        self.0.write_fmt(what).expect("a string takes all");
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }
}

/// The corners of a line.
fn corners(points: impl Iterator<Item = (f64, f64)>) -> String {
    let corners: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    corners.join(" ")
}

/// A number, short enough to stand next to a chart.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(0.001..1e6).contains(&size) {
        format!("{value:.2e}")
    } else if size < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.2}")
    }
}

/// A value as it is said: without a fraction where there is none.
fn whole(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        short(value)
    }
}

fn escaped(text: &str) -> String {
    tera::escape_html(text)
}
