//! Charts as SVG, drawn on the server and coloured by the style sheet. A chart has a title and a description for
//! those who do not see it; the table beside it has the numbers.

use std::fmt::Write;

use crate::kind::characteristic::limits::ControlLimits;

/// Of the drawing, in its own units; it is scaled to the page.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 8.0;
/// For the names of the lines.
const LABELS: f64 = 64.0;

/// A point of a control chart.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) value: f64,
    pub(super) in_control: bool,
    /// For whoever points at it.
    pub(super) title: String,
}

/// A control chart: the points in order, the centre line, the limits and the zones between.
pub(super) fn control_chart(
    title: &str,
    points: &[Point],
    limits: Option<&ControlLimits>,
) -> String {
    let lines: Vec<f64> = limits
        .map(|limits| vec![limits.lcl, limits.center_line, limits.ucl])
        .unwrap_or_default();
    let values = || {
        points
            .iter()
            .map(|point| point.value)
            .chain(lines.iter().copied())
    };
    let lowest = values().fold(f64::MAX, f64::min);
    let highest = values().fold(f64::MIN, f64::max);
    let (middle, half) = ((lowest + highest) / 2.0, (highest - lowest) / 2.0);
    // A little air, also around a flat line.
    let reach = if half > 0.0 { half * 1.15 } else { 1.0 };
    let y = |value: f64| HEIGHT / 2.0 - (value - middle) / reach * (HEIGHT / 2.0 - MARGIN);
    let room = WIDTH - LABELS - 2.0 * MARGIN;
    let last = points.len().saturating_sub(1).max(1) as f64;
    let x = |index: usize| MARGIN + room * index as f64 / last;

    let mut svg = format!(
        r#"<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="chart-title chart-text">"#
    );
    let out = points.iter().filter(|point| !point.in_control).count();
    let title = escaped(title);
    let text = format!("{} samples, {out} out of control", points.len());
    write!(
        svg,
        r#"<title id="chart-title">{title}</title><desc id="chart-text">{text}</desc>"#
    )
    .expect("a string takes all");
    if let Some(limits) = limits {
        draw_limits(&mut svg, limits, y);
    }
    let path: Vec<String> = points
        .iter()
        .enumerate()
        .map(|(index, point)| format!("{:.1},{:.1}", x(index), y(point.value)))
        .collect();
    write!(
        svg,
        r#"<polyline class="line" points="{}"/>"#,
        path.join(" ")
    )
    .expect("a string takes all");
    for (index, point) in points.iter().enumerate() {
        let class = if point.in_control {
            "point"
        } else {
            "point out"
        };
        let radius = if point.in_control { 3 } else { 5 };
        write!(
            svg,
            r#"<circle class="{class}" cx="{:.1}" cy="{:.1}" r="{radius}"><title>{}</title></circle>"#,
            x(index),
            y(point.value),
            escaped(&point.title)
        )
        .expect("a string takes all");
    }
    svg.push_str("</svg>");
    svg
}

/// A small chart of how something went by the second, newest on the right: `name` tells it from the page's others.
/// It is drawn as wide as `room` values, so that a server that has just begun shows how short it has been.
pub(super) fn spark(name: &str, title: &str, values: &[f64], room: usize) -> String {
    let highest = values.iter().copied().fold(0.0, f64::max);
    let now = values.last().copied().unwrap_or(0.0);
    let mut svg = format!(
        r#"<svg class="spark" viewBox="0 0 {room} 40" preserveAspectRatio="none" role="img" aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{}</title><desc id="{name}-text">{} now, at most {} in the last {} seconds</desc>"#,
        escaped(title),
        whole(now),
        whole(highest),
        values.len(),
    );
    let scale = 38.0 / highest.max(1.0);
    let first = room.saturating_sub(values.len());
    let points: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(index, value)| format!("{},{:.1}", first + index, 39.0 - value * scale))
        .collect();
    if !points.is_empty() {
        let last = first + values.len() - 1;
        write!(
            svg,
            r#"<polygon class="area" points="{first},40 {} {last},40"/><polyline class="line" points="{}"/>"#,
            points.join(" "),
            points.join(" ")
        )
        .expect("a string takes all");
    }
    svg.push_str("</svg>");
    svg
}

/// A value as it is said: without a fraction where there is none.
fn whole(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        short(value)
    }
}

fn draw_limits(svg: &mut String, limits: &ControlLimits, y: impl Fn(f64) -> f64) {
    let right = WIDTH - LABELS;
    let ControlLimits {
        center_line,
        ucl,
        lcl,
    } = *limits;
    for (class, sigmas) in [("zone-a", 3.0), ("zone-b", 2.0), ("zone-c", 1.0)] {
        let (top, bottom) = (
            y(center_line + (ucl - center_line) * sigmas / 3.0),
            y(center_line - (center_line - lcl) * sigmas / 3.0),
        );
        let height = (bottom - top).max(0.0);
        write!(
            svg,
            r#"<rect class="{class}" x="0" y="{top:.1}" width="{right}" height="{height:.1}"/>"#
        )
        .expect("a string takes all");
    }
    for (class, name, value) in [
        ("limit", "UCL", ucl),
        ("center", "CL", center_line),
        ("limit", "LCL", lcl),
    ] {
        let at = y(value);
        write!(
            svg,
            r#"<line class="{class}" x1="0" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text x="{}" y="{:.1}">{name} {}</text>"#,
            right + 4.0,
            at + 4.0,
            short(value)
        )
        .expect("a string takes all");
    }
}

/// A number as it fits beside a chart.
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

fn escaped(text: &str) -> String {
    tera::escape_html(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_chart_says_what_it_shows() {
        let svg = spark("rate", "Events & more", &[0.0, 12.0, 3.0], 60);
        assert!(
            svg.contains("3 now, at most 12 in the last 3 seconds"),
            "{svg}"
        );
        assert!(
            svg.contains("Events &amp; more") && svg.contains("57,39.0 58,1.0 59,29.5"),
            "{svg}"
        );
        assert!(!spark("rate", "Nothing yet", &[], 60).contains("NaN"));
    }

    #[test]
    fn a_chart_of_any_numbers_has_numbers_only() {
        let point = |value| Point {
            value,
            in_control: value < 1.0,
            title: "<b>".into(),
        };
        let limits = ControlLimits {
            center_line: 0.0,
            ucl: 0.0,
            lcl: 0.0,
        };
        for points in [
            vec![],
            vec![point(0.0)],
            vec![point(1e100), point(-1e100)],
            vec![point(5.0); 3],
        ] {
            for limits in [None, Some(&limits)] {
                let svg = control_chart("A & B", &points, limits);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(!svg.contains("<b>") && svg.contains("A &amp; B"));
            }
        }
    }
}
