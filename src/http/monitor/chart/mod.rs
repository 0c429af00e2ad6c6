//! Charts as SVG, drawn on the server and coloured by the style sheet. Each has a title and a description for screen readers;
//! the table next to it has the numbers.
//!
//! A chart with text is as wide as its container, has a fixed height, and is not scaled: its text keeps the size that the
//! style sheet sets, on a phone, too. Its horizontal unit is percent, the vertical one pixels. Other charts are stretched.

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

/// A drawing that is being built.
struct Svg(String);

impl Svg {
    /// Starts a drawing without text, in its own units, stretched to its container. `name` distinguishes the charts of a page.
    fn new(class: &str, name: &str, (width, height): (f64, f64), title: &str, text: &str) -> Svg {
        let size = format!(r#"viewBox="0 0 {width} {height}" preserveAspectRatio="none""#);
        Svg::of(class, name, &size, title, text)
    }

    /// Starts a drawing with a fixed height in pixels. [`Svg::end_with_names`] adds the labels next to it.
    fn with_words(name: &str, height: f64, title: &str, text: &str) -> Svg {
        let size = format!(r#"width="100%" height="{height}""#);
        let mut svg = Svg::of("plot", name, &size, title, text);
        svg.0.insert_str(0, r#"<div class="chart">"#);
        svg
    }

    fn of(class: &str, name: &str, size: &str, title: &str, text: &str) -> Svg {
        let mut svg = Svg(String::with_capacity(1_024));
        svg.put(format_args!(
            r#"<svg class="{class}" {size} role="img" aria-labelledby="{name}-title {name}-text">"#
        ));
        svg.put(format_args!(
            r#"<title id="{name}-title">{}</title><desc id="{name}-text">{}</desc>"#,
            escaped(title),
            escaped(text)
        ));
        svg
    }

    fn put(&mut self, what: Arguments<'_>) {
        self.0
            .write_fmt(what)
            .expect("writing to a string succeeds");
    }

    /// Adds a line to a plot of this height, stretched to its width.
    fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, height: f64) {
        self.put(format_args!(
            r#"<svg width="100%" height="{height}" viewBox="0 0 100 {height}" preserveAspectRatio="none"><polyline class="line" points="{}"/></svg>"#,
            corners(points)
        ));
    }

    /// Ends a drawing with text. Adds labels, each at its vertical position in pixels.
    fn end_with_names(mut self, height: f64, names: impl Iterator<Item = (f64, String)>) -> String {
        self.put(format_args!(
            r#"</svg><svg class="names" width="88" height="{height}" aria-hidden="true">"#
        ));
        for (y, name) in names {
            self.put(format_args!(
                r#"<text x="100%" y="{y:.1}">{}</text>"#,
                escaped(&name)
            ));
        }
        self.put(format_args!("</svg></div>"));
        self.0
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }
}

/// Formats the points of a line.
fn corners(points: impl Iterator<Item = (f64, f64)>) -> String {
    let corners: Vec<String> = points.map(|(x, y)| format!("{x:.2},{y:.1}")).collect();
    corners.join(" ")
}

/// Formats a number so that it fits next to a chart.
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

/// Formats a value, without a fraction if it is whole.
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
