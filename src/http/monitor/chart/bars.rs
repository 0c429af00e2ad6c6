//! Bar charts: counts of several categories in consecutive intervals.

use super::Svg;

const HEIGHT: f64 = 60.0;
const BAR: f64 = 10.0;
/// The gap between two bars.
const GAP: f64 = 2.0;

/// Draws a bar for each interval, oldest first, with its counts stacked from the bottom up. `classes` colour the counts;
/// `titles` are the tooltips of the bars.
pub(in crate::http::monitor) fn bars(
    name: &str,
    (title, text): (&str, &str),
    classes: &[&str],
    stretches: &[Vec<u64>],
    titles: &[String],
) -> String {
    let highest = stretches.iter().map(|counts| counts.iter().sum::<u64>());
    let scale = HEIGHT / highest.max().unwrap_or(0).max(1) as f64;
    let width = stretches.len() as f64 * (BAR + GAP);
    let mut svg = Svg::new("bars", name, (width, HEIGHT), title, text);
    for (index, counts) in stretches.iter().enumerate() {
        let x = index as f64 * (BAR + GAP);
        let words = titles.get(index).map_or("", String::as_str);
        svg.put(format_args!("<g><title>{}</title>", super::escaped(words)));
        // Let the pointer hit the whole height.
        svg.put(format_args!(
            r#"<rect class="room" x="{x}" width="{BAR}" height="{HEIGHT}"/>"#
        ));
        let mut top = HEIGHT;
        for (count, class) in counts.iter().zip(classes) {
            let height = *count as f64 * scale;
            top -= height;
            if *count > 0 {
                svg.put(format_args!(
                    r#"<rect class="{class}" x="{x}" y="{top:.1}" width="{BAR}" height="{height:.1}"/>"#
                ));
            }
        }
        svg.put(format_args!("</g>"));
    }
    svg.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stand_on_one_another() {
        let stretches = [vec![0, 0], vec![3, 1], vec![0, 2]];
        let titles = ["a", "b", "<c>"].map(str::to_owned);
        let svg = bars("b", ("t", "d"), &["good", "bad"], &stretches, &titles);
        assert!(
            svg.contains(r#"class="good" x="12" y="15.0" width="10" height="45.0""#),
            "{svg}"
        );
        assert!(
            svg.contains(r#"class="bad" x="12" y="0.0" width="10" height="15.0""#),
            "{svg}"
        );
        assert!(
            svg.contains(r#"class="bad" x="24" y="30.0""#) && !svg.contains("<c>"),
            "{svg}"
        );
        assert!(!bars("b", ("", ""), &[], &[], &[]).contains("NaN"));
    }
}
