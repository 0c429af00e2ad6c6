//! The progress of a job over time, with one line per attempt.

use chrono::{DateTime, Utc};

use super::Svg;

const HEIGHT: f64 = 160.0;
const MARGIN: f64 = 10.0;
/// The horizontal margin, in percent.
const SIDE: f64 = 1.5;
/// The percentages with a line and a label.
const RULES: [f64; 3] = [0.0, 50.0, 100.0];

/// A report of a job's progress.
#[derive(Clone)]
pub(in crate::http::monitor) struct Report {
    pub(in crate::http::monitor) at: DateTime<Utc>,
    pub(in crate::http::monitor) percent: f64,
    pub(in crate::http::monitor) attempt: u64,
}

/// Draws the reports, in order. `until` is the end of the chart; no report is later.
pub(in crate::http::monitor) fn progress_chart(
    title: &str,
    reports: &[Report],
    until: DateTime<Utc>,
) -> String {
    let begun = reports.first().map_or(until, |report| report.at);
    let length = (until - begun).num_milliseconds().max(1) as f64;
    let x = |at: DateTime<Utc>| {
        let gone = (at - begun).num_milliseconds() as f64 / length;
        SIDE + (100.0 - 2.0 * SIDE) * gone.clamp(0.0, 1.0)
    };
    let y = |percent: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * percent / 100.0;
    let attempts = reports.chunk_by(|one, next| one.attempt == next.attempt);
    let last = reports.last();
    let text = format!(
        "{} reports, the last of {:.0} %",
        reports.len(),
        last.map_or(0.0, |report| report.percent)
    );
    let mut svg = Svg::with_words("progress", HEIGHT, title, &text);
    for percent in RULES {
        let at = y(percent);
        svg.put(format_args!(
            r#"<line class="rule" x1="0" x2="100%" y1="{at:.1}" y2="{at:.1}"/>"#
        ));
    }
    for attempt in attempts {
        let end = match attempt.last() {
            // The current attempt has not changed since its last report.
            Some(point) if Some(point.attempt) == last.map(|last| last.attempt) => {
                Some((x(until), y(point.percent)))
            }
            _ => None,
        };
        let line = attempt
            .iter()
            .map(|report| (x(report.at), y(report.percent)));
        svg.line(line.chain(end), HEIGHT);
    }
    if let Some(last) = last {
        svg.put(format_args!(
            r#"<circle class="point" cx="{:.2}%" cy="{:.1}" r="3.5"/>"#,
            x(last.at),
            y(last.percent)
        ));
    }
    let name = |percent| (y(percent) + 4.0, format!("{percent:.0} %"));
    svg.end_with_names(HEIGHT, RULES.into_iter().map(name))
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
        let svg = progress_chart("j <b>", &reports, until);
        assert!(svg.contains(r#"points="1.50,150.0 25.75,80.0""#), "{svg}");
        assert!(
            svg.contains(r#"points="50.00,150.0 74.25,10.0 98.50,10.0""#),
            "{svg}"
        );
        assert!(
            svg.contains("4 reports, the last of 100 %") && !svg.contains("<b>"),
            "{svg}"
        );
        let none = progress_chart("none", &[], begun);
        assert!(!none.contains("NaN") && !none.contains("inf"), "{none}");
    }
}
