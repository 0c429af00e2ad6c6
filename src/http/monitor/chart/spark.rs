//! Small charts of a value per second.

use super::{Svg, corners, whole};

const HEIGHT: f64 = 40.0;

/// Draws values, newest on the right. The chart has room for `room` values. Its left part stays empty if the server has not
/// been running long enough.
pub(in crate::http::monitor) fn spark(
    name: &str,
    title: &str,
    values: &[f64],
    room: usize,
) -> String {
    let highest = values.iter().copied().fold(0.0, f64::max);
    let text = format!(
        "{} now, at most {} in the last {} seconds",
        whole(values.last().copied().unwrap_or(0.0)),
        whole(highest),
        values.len()
    );
    let mut svg = Svg::new("spark", name, (room as f64, HEIGHT), title, &text);
    let scale = (HEIGHT - 2.0) / highest.max(1.0);
    let first = room.saturating_sub(values.len());
    let points = values.iter().enumerate();
    let line = corners(
        points.map(|(index, value)| ((first + index) as f64, HEIGHT - 1.0 - value * scale)),
    );
    if !values.is_empty() {
        let last = first + values.len() - 1;
        svg.put(format_args!(
            r#"<polygon class="area" points="{first},{HEIGHT} {line} {last},{HEIGHT}"/><polyline class="line" points="{line}"/>"#
        ));
    }
    svg.end()
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
            svg.contains("Events &amp; more") && svg.contains("57.00,39.0 58.00,1.0 59.00,29.5"),
            "{svg}"
        );
        assert!(!spark("rate", "Nothing yet", &[], 60).contains("NaN"));
    }
}
