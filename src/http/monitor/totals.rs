//! How many subjects of each kind a school has, and how many of them need attention.

use chrono::{TimeDelta, Utc};
use serde_json::{Map, Value};

use super::form::count;
use crate::auth::Access;
use crate::config::ENDINGS_HOURS;
use crate::id::{Kind, SchoolId};
use crate::kind::{KINDS, characteristic, device, job, schedule};
use crate::log::{StoreError, Tally, TallyQuery};
use crate::service::Tidings;

/// The statuses of an enrollment session in progress.
pub(super) const ENROLLING: [&str; 4] = ["ready", "placing", "capturing", "processing"];
/// The statuses of a job that no worker has started.
pub(super) const WAITING: [&str; 2] = ["pending", "queued"];

/// The statuses of a schedule whose run has not started or ended in time.
pub(super) const OVERDUE: [&str; 2] = ["missed", "late"];

/// Returns what to count of a kind.
fn wanted(kind: Kind) -> TallyQuery {
    let day = Utc::now() - TimeDelta::hours(ENDINGS_HOURS);
    TallyQuery {
        stalled: kind == job::KIND,
        ended: (kind == job::KIND).then_some(("failed", day)),
        open_parts: kind == characteristic::KIND,
        ..TallyQuery::of(kind)
    }
}

/// Returns the counts of a kind, by status and by derived categories.
fn counts(kind: Kind, tally: Tally) -> Vec<(&'static str, u64)> {
    let mut counts = tally.by_status;
    let sum = |statuses: &[&str]| {
        let fitting = counts
            .iter()
            .filter(|(status, _)| statuses.contains(status));
        fitting.map(|(_, count)| count).sum::<u64>()
    };
    let mut more = vec![
        ("all", counts.iter().map(|(_, count)| count).sum()),
        ("active", sum(&ENROLLING)),
        ("waiting", sum(&WAITING)),
    ];
    if kind == job::KIND {
        let stalled = tally.stalled;
        // A stalled job is also in progress. The pages count it only once, as stalled.
        more.push(("running", sum(&["in_progress"]).saturating_sub(stalled)));
        more.push(("stalled", stalled));
        more.push(("failed_lately", tally.ended));
    }
    if kind == schedule::KIND {
        more.push(("overdue", sum(&OVERDUE)));
    }
    if kind == characteristic::KIND {
        more.push(("open_violations", tally.open_parts));
    }
    counts.extend(more);
    counts
}

/// The counts of the kinds that a visitor may see, by status and by derived categories.
pub(super) struct Totals(Vec<(Kind, Vec<(&'static str, u64)>)>);

impl Totals {
    /// Counts what the visitor may see in a school.
    pub(super) async fn read(
        tidings: &Tidings,
        access: &Access,
        school: SchoolId,
    ) -> Result<Totals, StoreError> {
        let totals = Totals::of_schools(tidings, access, vec![school]).await?;
        Ok(totals.into_iter().next().unwrap_or(Totals(Vec::new())))
    }

    /// Counts what the visitor may see in each of these schools.
    pub(super) async fn of_schools(
        tidings: &Tidings,
        access: &Access,
        schools: Vec<SchoolId>,
    ) -> Result<Vec<Totals>, StoreError> {
        let queries = KINDS.iter().copied().map(wanted).collect();
        let tallies = tidings.reads().tallies(access, schools, queries).await?;
        let of_school = |tallies: Vec<(Kind, Tally)>| {
            let counted = tallies
                .into_iter()
                .map(|(kind, tally)| (kind, counts(kind, tally)));
            Totals(counted.collect())
        };
        Ok(tallies.into_iter().map(of_school).collect())
    }

    /// Returns one of the counts. Returns 0 if the visitor may not see the kind.
    pub(super) fn of(&self, kind: Kind, name: &str) -> u64 {
        let found = self.0.iter().find(|(known, _)| *known == kind);
        let counts = found.into_iter().flat_map(|(_, counts)| counts);
        let fitting = counts.filter(|(count_name, _)| *count_name == name);
        fitting.map(|(_, count)| count).sum()
    }

    /// Returns the number of subjects and violations that need attention, for the title of the page.
    fn wrong(&self) -> u64 {
        [
            (job::KIND, "stalled"),
            (job::KIND, "failed_lately"),
            (characteristic::KIND, "open_violations"),
            (device::KIND, "offline"),
            (schedule::KIND, "missed"),
            (schedule::KIND, "late"),
        ]
        .iter()
        .map(|(kind, name)| self.of(*kind, name))
        .sum()
    }

    /// Returns that count for templates, or none if it is 0.
    pub(super) fn wrong_view(&self) -> Option<String> {
        Some(self.wrong()).filter(|wrong| *wrong > 0).map(count)
    }

    /// Returns the counts for templates.
    pub(super) fn view(&self) -> Value {
        let of_kind = |(kind, counts): &(Kind, Vec<(&'static str, u64)>)| {
            let counts = counts.iter();
            let counts = counts.map(|(name, number)| ((*name).to_owned(), count(*number).into()));
            let counts: Map<String, Value> = counts.collect();
            (kind.collection().to_owned(), Value::Object(counts))
        };
        Value::Object(self.0.iter().map(of_kind).collect())
    }
}
