//! How many subjects of each kind a school has, and how many of them need attention.

use chrono::{TimeDelta, Utc};
use serde_json::{Map, Value};

use super::form::count;
use crate::auth::Access;
use crate::config::ENDINGS_HOURS;
use crate::id::{Channel, Kind, SchoolId};
use crate::kind::{KINDS, characteristic, device, job};
use crate::log::StoreError;
use crate::service::Tidings;

/// The statuses of an enrollment session in progress.
pub(super) const ENROLLING: [&str; 4] = ["ready", "placing", "capturing", "processing"];
/// The statuses of a job that no worker has started.
pub(super) const WAITING: [&str; 2] = ["pending", "queued"];

/// The counts of the kinds that a visitor may see, by status and by derived categories.
pub(super) struct Totals(Vec<(Kind, Vec<(&'static str, u64)>)>);

impl Totals {
    /// Counts what the visitor may see in a school.
    pub(super) async fn read(
        tidings: &Tidings,
        access: &Access,
        school: SchoolId,
    ) -> Result<Totals, StoreError> {
        let mut totals = Vec::new();
        for kind in KINDS.iter().copied() {
            if access
                .authorize(school, &Channel::Collection(kind))
                .is_err()
            {
                continue;
            }
            let mut own = tidings.store().counts(school, kind).await?;
            let sum = |statuses: &[&str]| {
                let fitting = own.iter().filter(|(status, _)| statuses.contains(status));
                fitting.map(|(_, count)| count).sum::<u64>()
            };
            let all = own.iter().map(|(_, count)| count).sum();
            let mut more = vec![
                ("all", all),
                ("active", sum(&ENROLLING)),
                ("waiting", sum(&WAITING)),
            ];
            if kind == job::KIND {
                let stalled = tidings.store().stalled(school, kind).await?;
                let day = Utc::now() - TimeDelta::hours(ENDINGS_HOURS);
                let failed = tidings.store().ended_since(school, kind, "failed", day);
                // A stalled job is also in progress. The pages count it only once, as stalled.
                more.push(("running", sum(&["in_progress"]).saturating_sub(stalled)));
                more.push(("stalled", stalled));
                more.push(("failed_lately", failed.await?));
            }
            if kind == characteristic::KIND {
                let open = tidings.store().open_parts(school, kind).await?;
                more.push(("open_violations", open));
            }
            own.extend(more);
            totals.push((kind, own));
        }
        Ok(Totals(totals))
    }

    /// Returns one of the counts. Returns 0 if the visitor may not see the kind.
    pub(super) fn of(&self, kind: Kind, name: &str) -> u64 {
        let own = self.0.iter().find(|(own, _)| *own == kind);
        let counts = own.into_iter().flat_map(|(_, counts)| counts);
        let fitting = counts.filter(|(own, _)| *own == name);
        fitting.map(|(_, count)| count).sum()
    }

    /// Returns the count in the page's title: the subjects that need attention.
    fn wrong(&self) -> u64 {
        [
            (job::KIND, "stalled"),
            (job::KIND, "failed_lately"),
            (characteristic::KIND, "open_violations"),
            (device::KIND, "offline"),
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
