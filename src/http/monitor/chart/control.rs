//! Control charts: samples in order, between the limits that judge them.

use super::{Svg, corners, escaped, short};
use crate::kind::characteristic::limits::ControlLimits;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 8.0;
/// For the names of the lines.
const LABELS: f64 = 64.0;

/// A sample.
#[derive(Clone)]
pub(in crate::http::monitor) struct Point {
    /// Nothing of a gap: its place stays empty, and no line leads across it.
    pub(in crate::http::monitor) value: Option<f64>,
    pub(in crate::http::monitor) in_control: bool,
    /// The rule that it breaks, which colours it.
    pub(in crate::http::monitor) rule: Option<u8>,
    /// Appears when the pointer rests on it.
    pub(in crate::http::monitor) title: String,
}

/// The points in order, the centre line, the limits and the zones between. `name` tells the chart from the page's
/// others.
pub(in crate::http::monitor) fn control_chart(
    name: &str,
    title: &str,
    points: &[Point],
    limits: Option<&ControlLimits>,
) -> String {
    let lines: Vec<f64> = limits
        .map(|limits| [limits.lower(), Some(limits.center_line), limits.upper()])
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    let values = || {
        points
            .iter()
            .filter_map(|point| point.value)
            .chain(lines.iter().copied())
    };
    let lowest = values().reduce(f64::min).unwrap_or(0.0);
    let highest = values().reduce(f64::max).unwrap_or(0.0);
    let (middle, half) = ((lowest + highest) / 2.0, (highest - lowest) / 2.0);
    // A little air, also around a flat line.
    let reach = if half > 0.0 { half * 1.15 } else { 1.0 };
    let y = |value: f64| HEIGHT / 2.0 - (value - middle) / reach * (HEIGHT / 2.0 - MARGIN);
    let room = WIDTH - LABELS - 2.0 * MARGIN;
    let last = points.len().saturating_sub(1).max(1) as f64;
    let x = |index: usize| MARGIN + room * index as f64 / last;

    let out = points.iter().filter(|point| !point.in_control).count();
    let gaps = points.iter().filter(|point| point.value.is_none()).count();
    let gaps = match gaps {
        0 => String::new(),
        _ => format!(", {gaps} without a value"),
    };
    let text = format!("{} samples, {out} out of control{gaps}", points.len());
    let mut svg = Svg::new("chart", name, (WIDTH, HEIGHT), title, &text);
    if let Some(limits) = limits {
        draw_limits(&mut svg, limits, y);
    }
    let places: Vec<Option<(f64, f64)>> = points
        .iter()
        .enumerate()
        .map(|(index, point)| Some((x(index), y(point.value?))))
        .collect();
    for stretch in places.split(Option::is_none) {
        if !stretch.is_empty() {
            let line = stretch.iter().copied().flatten();
            svg.put(format_args!(
                r#"<polyline class="line" points="{}"/>"#,
                corners(line)
            ));
        }
    }
    for (point, place) in points.iter().zip(&places) {
        let Some((x, y)) = *place else {
            continue;
        };
        let radius = if point.in_control { 3 } else { 5 };
        let class = match (point.in_control, point.rule) {
            (true, _) => "point".to_owned(),
            (false, None) => "point out".to_owned(),
            (false, Some(rule)) => format!("point out rule-{rule}"),
        };
        svg.put(format_args!(
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}"><title>{}</title></circle>"#,
            escaped(&point.title)
        ));
    }
    svg.end()
}

fn draw_limits(svg: &mut Svg, limits: &ControlLimits, y: impl Fn(f64) -> f64) {
    let right = WIDTH - LABELS;
    let center_line = limits.center_line;
    // A side without a limit has no zones either.
    let (ucl, lcl) = (
        limits.upper().unwrap_or(center_line),
        limits.lower().unwrap_or(center_line),
    );
    for (class, sigmas) in [("zone-a", 3.0), ("zone-b", 2.0), ("zone-c", 1.0)] {
        let (top, bottom) = (
            y(center_line + (ucl - center_line) * sigmas / 3.0),
            y(center_line - (center_line - lcl) * sigmas / 3.0),
        );
        let height = (bottom - top).max(0.0);
        svg.put(format_args!(
            r#"<rect class="{class}" x="0" y="{top:.1}" width="{right}" height="{height:.1}"/>"#
        ));
    }
    for (class, name, value) in [
        ("limit", "UCL", limits.upper()),
        ("center", "CL", Some(center_line)),
        ("limit", "LCL", limits.lower()),
    ] {
        let Some(value) = value else {
            continue;
        };
        let at = y(value);
        svg.put(format_args!(
            r#"<line class="{class}" x1="0" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text x="{}" y="{:.1}">{name} {}</text>"#,
            right + 4.0,
            at + 4.0,
            short(value)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_of_any_numbers_has_numbers_only() {
        let gap = Point {
            value: None,
            in_control: true,
            rule: None,
            title: String::new(),
        };
        let point = |value| Point {
            value: Some(value),
            in_control: value < 1.0,
            rule: Some(1),
            title: "<b>".into(),
        };
        let limits = ControlLimits {
            center_line: 0.0,
            ucl: 0.0,
            lcl: 0.0,
        };
        let one_sided = ControlLimits {
            ucl: f64::INFINITY,
            lcl: -3.0,
            ..limits
        };
        for points in [
            vec![],
            vec![point(0.0)],
            vec![point(1e300), point(-1e300)],
            vec![point(5.0); 3],
            vec![gap.clone(); 2],
            vec![gap, point(5.0)],
        ] {
            for limits in [None, Some(&limits), Some(&one_sided)] {
                let svg = control_chart("control", "A & B", &points, limits);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(!svg.contains("<b>") && svg.contains("A &amp; B"));
            }
        }
    }
}
