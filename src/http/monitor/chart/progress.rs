//! How a job went on: its progress over time, an attempt a line.

use chrono::{DateTime, Utc};

use super::{Svg, corners, escaped};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 180.0;
const MARGIN: f64 = 10.0;
/// For the names of the lines, and for the times below.
const LABELS: f64 = 44.0;
const FOOT: f64 = 20.0;

/// What was said of a job's progress.
#[derive(Clone)]
pub(in crate::http::monitor) struct Report {
    pub(in crate::http::monitor) at: DateTime<Utc>,
    pub(in crate::http::monitor) percent: f64,
    pub(in crate::http::monitor) attempt: u64,
}

/// The reports in order up to `until`, which they do not go beyond; `ends` are the words below the first and the last
/// moment.
pub(in crate::http::monitor) fn progress_chart(
    title: &str,
    reports: &[Report],
    until: DateTime<Utc>,
    ends: (&str, &str),
) -> String {
    let (right, bottom) = (WIDTH - LABELS, HEIGHT - FOOT);
    let begun = reports.first().map_or(until, |report| report.at);
    let length = (until - begun).num_milliseconds().max(1) as f64;
    let x = |at: DateTime<Utc>| {
        let gone = (at - begun).num_milliseconds() as f64 / length;
        MARGIN + (right - 2.0 * MARGIN) * gone.clamp(0.0, 1.0)
    };
    let y = |percent: f64| bottom - MARGIN - (bottom - 2.0 * MARGIN) * percent / 100.0;
    let attempts = reports.chunk_by(|one, next| one.attempt == next.attempt);
    let last = reports.last().map_or(0.0, |report| report.percent);
    let text = format!("{} reports, the last of {last:.0} %", reports.len());
    let mut svg = Svg::new("chart", "progress", (WIDTH, HEIGHT), title, &text);
    for percent in [0.0, 50.0, 100.0] {
        let at = y(percent);
        svg.put(format_args!(
            r#"<line class="rule" x1="0" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text x="{}" y="{:.1}">{percent:.0} %</text>"#,
            right + 6.0,
            at + 4.0,
        ));
    }
    for attempt in attempts {
        let end = match attempt.last() {
            // Nothing has changed since the last word of the last attempt.
            Some(own) if own.attempt == reports.last().map_or(0, |last| last.attempt) => {
                Some((x(until), y(own.percent)))
            }
            _ => None,
        };
        let line = attempt
            .iter()
            .map(|report| (x(report.at), y(report.percent)));
        svg.put(format_args!(
            r#"<polyline class="line" points="{}"/>"#,
            corners(line.chain(end))
        ));
    }
    if let Some(last) = reports.last() {
        svg.put(format_args!(
            r#"<circle class="point" cx="{:.1}" cy="{:.1}" r="3.5"/>"#,
            x(last.at),
            y(last.percent)
        ));
    }
    svg.put(format_args!(
        r#"<text x="{MARGIN}" y="{y}">{}</text><text class="end" x="{}" y="{y}">{}</text>"#,
        escaped(ends.0),
        right - MARGIN,
        escaped(ends.1),
        y = HEIGHT - 4.0,
    ));
    svg.end()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn each_attempt_is_a_line_and_the_last_goes_on_to_the_end() {
        let begun = DateTime::UNIX_EPOCH;
        let report = |secs, percent, attempt| Report {
            at: begun + TimeDelta::seconds(secs),
            percent,
            attempt,
        };
        let reports = [
            report(0, 0.0, 1),
            report(10, 50.0, 1),
            report(20, 0.0, 2),
            report(30, 100.0, 2),
        ];
        let until = begun + TimeDelta::seconds(40);
        let svg = progress_chart("j <b>", &reports, until, ("then", "now"));
        assert!(svg.contains(r#"points="10.0,150.0 174.0,80.0""#), "{svg}");
        assert!(
            svg.contains(r#"points="338.0,150.0 502.0,10.0 666.0,10.0""#),
            "{svg}"
        );
        assert!(
            svg.contains("4 reports, the last of 100 %") && !svg.contains("<b>"),
            "{svg}"
        );
        let none = progress_chart("none", &[], begun, ("", ""));
        assert!(!none.contains("NaN") && !none.contains("inf"), "{none}");
    }
}
