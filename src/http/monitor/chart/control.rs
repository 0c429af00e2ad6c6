//! Control charts: samples in order, with their control limits.

use super::{Svg, escaped, short};
use crate::kind::characteristic::limits::ControlLimits;

const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 8.0;
/// The horizontal margin, in percent.
const SIDE: f64 = 1.5;

/// A sample.
#[derive(Clone)]
pub(in crate::http::monitor) struct Point {
    /// The value. `None` is a gap: its place stays empty, and no line crosses it.
    pub(in crate::http::monitor) value: Option<f64>,
    pub(in crate::http::monitor) in_control: bool,
    /// The rule that the sample violates, which sets its colour.
    pub(in crate::http::monitor) rule: Option<u8>,
    /// The tooltip.
    pub(in crate::http::monitor) title: String,
}

/// Draws the points in order, the center line, the limits and the zones between them. `name` distinguishes the charts of a
/// page.
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
    // Leave a margin, even around a flat line.
    let reach = if half > 0.0 { half * 1.15 } else { 1.0 };
    let y = |value: f64| HEIGHT / 2.0 - (value - middle) / reach * (HEIGHT / 2.0 - MARGIN);
    let last = points.len().saturating_sub(1).max(1) as f64;
    let x = |index: usize| SIDE + (100.0 - 2.0 * SIDE) * index as f64 / last;

    let out = points.iter().filter(|point| !point.in_control).count();
    let gaps = points.iter().filter(|point| point.value.is_none()).count();
    let gaps = match gaps {
        0 => String::new(),
        _ => format!(", {gaps} without a value"),
    };
    let text = format!("{} samples, {out} out of control{gaps}", points.len());
    let mut svg = Svg::with_words(name, HEIGHT, title, &text);
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
            svg.line(stretch.iter().copied().flatten(), HEIGHT);
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
            r#"<circle class="{class}" cx="{x:.2}%" cy="{y:.1}" r="{radius}"><title>{}</title></circle>"#,
            escaped(&point.title)
        ));
    }
    let names = limits.map(|limits| names(limits, y)).unwrap_or_default();
    svg.end_with_names(HEIGHT, names.into_iter())
}

/// Returns the lines of the chart: the class, name and value of each.
fn lines(limits: &ControlLimits) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
    [
        ("limit", "UCL", limits.upper()),
        ("center", "CL", Some(limits.center_line)),
        ("limit", "LCL", limits.lower()),
    ]
    .into_iter()
    .filter_map(|(class, name, value)| Some((class, name, value?)))
}

/// Returns the labels of the lines. Moves labels apart if their lines are too close together.
fn names(limits: &ControlLimits, y: impl Fn(f64) -> f64) -> Vec<(f64, String)> {
    /// The minimum distance between two labels.
    const APART: f64 = 13.0;
    let lines: Vec<_> = lines(limits).collect();
    let mut free = 0.0_f64;
    let place = |(index, (_, name, value)): (usize, &(_, &str, f64))| {
        let below = (lines.len() - 1 - index) as f64 * APART;
        free = (y(*value) + 4.0)
            .max(free + APART)
            .min(HEIGHT - 4.0 - below);
        (free, format!("{name} {}", short(*value)))
    };
    lines.iter().enumerate().map(place).collect()
}

fn draw_limits(svg: &mut Svg, limits: &ControlLimits, y: impl Fn(f64) -> f64) {
    let center_line = limits.center_line;
    // A side without a limit has no zones.
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
            r#"<rect class="{class}" x="0" y="{top:.1}" width="100%" height="{height:.1}"/>"#
        ));
    }
    for (class, _, value) in lines(limits) {
        let at = y(value);
        svg.put(format_args!(
            r#"<line class="{class}" x1="0" x2="100%" y1="{at:.1}" y2="{at:.1}"/>"#
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

    #[test]
    fn names_of_lines_that_lie_on_one_another_do_not() {
        for (ucl, lcl) in [(0.0, 0.0), (3.0, -3.0), (0.01, 0.0), (f64::INFINITY, 0.0)] {
            let limits = ControlLimits {
                center_line: 0.0,
                ucl,
                lcl,
            };
            for at in [0.0, 5.0, HEIGHT / 2.0, HEIGHT] {
                let names = names(&limits, |value| at - value);
                let apart = |pair: &[(f64, String)]| pair[1].0 - pair[0].0 >= 12.9;
                assert!(names.windows(2).all(apart), "{names:?}");
                assert!(
                    names.iter().all(|(y, _)| (10.0..HEIGHT).contains(y)),
                    "{names:?}"
                );
            }
        }
    }
}
