//! Strips: the state of something over time.

use chrono::{DateTime, Utc};

use super::Svg;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 10.0;
/// The minimum width of a stretch.
const SHORTEST: f64 = 1.5;

/// A state, until the next one begins.
#[derive(Clone)]
pub(in crate::http::monitor) struct Stretch {
    pub(in crate::http::monitor) from: DateTime<Utc>,
    pub(in crate::http::monitor) status: String,
}

/// Draws the stretches, in order, between two times.
pub(in crate::http::monitor) fn strip(
    name: &str,
    title: &str,
    text: &str,
    stretches: &[Stretch],
    (from, until): (DateTime<Utc>, DateTime<Utc>),
) -> String {
    let length = (until - from).num_milliseconds().max(1) as f64;
    let x = |at: DateTime<Utc>| {
        let gone = (at - from).num_milliseconds() as f64 / length;
        WIDTH * gone.clamp(0.0, 1.0)
    };
    let mut svg = Svg::new("strip", name, (WIDTH, HEIGHT), title, text);
    svg.put(format_args!(
        r#"<rect class="track" width="{WIDTH}" height="{HEIGHT}"/>"#
    ));
    for (index, stretch) in stretches.iter().enumerate() {
        let end = stretches.get(index + 1).map_or(until, |next| next.from);
        let (left, right) = (x(stretch.from), x(end));
        // Keep short stretches visible.
        let width = (right - left).max(SHORTEST);
        let left = left.min(WIDTH - width);
        svg.put(format_args!(
            r#"<rect class="{}" x="{left:.1}" width="{width:.1}" height="{HEIGHT}"/>"#,
            stretch.status
        ));
    }
    svg.end()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_stretch_lasts_until_the_next_begins() {
        let from = DateTime::UNIX_EPOCH;
        let at = |hours| from + TimeDelta::hours(hours);
        let stretch = |hours, status: &str| Stretch {
            from: at(hours),
            status: status.into(),
        };
        let stretches = [
            stretch(-5, "online"),
            stretch(12, "offline"),
            stretch(18, "online"),
            stretch(24, "unknown"),
        ];
        let svg = strip("door", "Front door", "", &stretches, (from, at(24)));
        assert!(
            svg.contains(r#"class="online" x="0.0" width="240.0""#),
            "{svg}"
        );
        assert!(
            svg.contains(r#"class="offline" x="240.0" width="120.0""#),
            "{svg}"
        );
        assert!(
            svg.contains(r#"class="online" x="360.0" width="120.0""#),
            "{svg}"
        );
        assert!(
            svg.contains(r#"class="unknown" x="478.5" width="1.5""#),
            "{svg}"
        );
    }
}
