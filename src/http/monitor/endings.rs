//! How many jobs ended in each hour, and how.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::{Value, json};

use super::chart::bars;
use super::form::{count, time};
use crate::app::{Caller, Rejected};
use crate::config::ENDINGS_HOURS;
use crate::kind::job;
use crate::log::Ending;
use crate::service::Tidings;

/// The ways in which jobs end, from the bottom of a bar to its top.
const WAYS: [&str; 3] = ["completed", "cancelled", "failed"];

/// Returns the ends of a school's jobs in the last hours, for a template.
pub(super) async fn view(tidings: &Tidings, caller: &Caller) -> Result<Value, Rejected> {
    let now = Utc::now();
    let since = now - TimeDelta::hours(ENDINGS_HOURS);
    let endings = tidings.reads().endings(caller, job::KIND, since).await?;
    let first = since.duration_trunc(TimeDelta::hours(1)).unwrap_or(since);
    Ok(counted(&endings, first, now))
}

fn counted(endings: &[Ending], since: DateTime<Utc>, now: DateTime<Utc>) -> Value {
    let of = |from: DateTime<Utc>, status: &str| {
        let fits = |ending: &&Ending| ending.from == from && ending.status == status;
        endings.iter().filter(fits).map(|ending| ending.count).sum()
    };
    // The first and the last hour are partial.
    let hours = (0..=ENDINGS_HOURS).map(|hours| since + TimeDelta::hours(hours));
    let stretches: Vec<(DateTime<Utc>, Vec<u64>)> = hours
        .map(|from| (from, WAYS.iter().map(|status| of(from, status)).collect()))
        .collect();
    let total = |index: usize| {
        stretches
            .iter()
            .map(|(_, counts)| counts[index])
            .sum::<u64>()
    };
    let [completed, cancelled, failed] = [total(0), total(1), total(2)];
    let words = |(from, counts): &(DateTime<Utc>, Vec<u64>)| {
        format!(
            "{} UTC: {} completed, {} cancelled, {} failed",
            from.format("%H:%M"),
            counts[0],
            counts[1],
            counts[2]
        )
    };
    let titles: Vec<String> = stretches.iter().map(words).collect();
    let text = format!("{completed} completed, {cancelled} cancelled, {failed} failed");
    let title = format!("Jobs that ended in the last {ENDINGS_HOURS} hours, by the hour");
    let counts: Vec<Vec<u64>> = stretches.iter().map(|(_, counts)| counts.clone()).collect();
    let row = |(from, counts): &(DateTime<Utc>, Vec<u64>)| {
        json!({
            "at": time(*from, now),
            "completed": count(counts[0]),
            "cancelled": count(counts[1]),
            "failed": count(counts[2]),
        })
    };
    let busy = stretches
        .iter()
        .rev()
        .filter(|(_, counts)| counts.iter().any(|count| *count > 0));
    json!({
        "chart": bars("endings", (&title, &text), &WAYS, &counts, &titles),
        "hours": ENDINGS_HOURS,
        "all": completed + cancelled + failed,
        "completed": count(completed),
        "cancelled": count(cancelled),
        "failed": count(failed),
        "has_failed": failed > 0,
        "rows": busy.map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hour_has_its_bar_and_the_whole_its_sum() {
        let now = DateTime::from_timestamp(1_000_000 * 3_600 + 60, 0).unwrap();
        let since = now - TimeDelta::seconds(60) - TimeDelta::hours(ENDINGS_HOURS);
        let ending = |hours, status, count| Ending {
            from: since + TimeDelta::hours(hours),
            status,
            count,
        };
        let endings = [
            ending(0, "completed", 1_200),
            ending(24, "failed", 2),
            ending(24, "completed", 1),
        ];
        let view = counted(&endings, since, now);
        assert_eq!(view["completed"], "1\u{202f}201");
        assert_eq!(view["has_failed"], true);
        let rows = view["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["failed"], "2", "the newest first");
        let chart = view["chart"].as_str().unwrap();
        assert_eq!(chart.matches("<g>").count(), ENDINGS_HOURS as usize + 1);
    }
}
