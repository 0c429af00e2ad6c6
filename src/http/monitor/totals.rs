//! How much there is of each kind in a school, and how much of it is wrong.

use chrono::{TimeDelta, Utc};
use serde_json::{Map, Value};

use super::form::count;
use crate::auth::Access;
use crate::config::ENDINGS_HOURS;
use crate::id::{Channel, Kind, SchoolId};
use crate::kind::{KINDS, characteristic, device, job};
use crate::log::StoreError;
use crate::service::Tidings;

/// The statuses of an enrollment session that goes on.
pub(super) const ENROLLING: [&str; 4] = ["ready", "placing", "capturing", "processing"];
/// The statuses of a job that nobody works on yet.
pub(super) const WAITING: [&str; 2] = ["pending", "queued"];

/// Counts of the kinds that a visitor may see: by status, and by what follows from it.
pub(super) struct Totals(Vec<(Kind, Vec<(&'static str, u64)>)>);

impl Totals {
    /// Counts what the visitor may see of a school.
    pub(super) async fn read(
        tidings: &Tidings,
        access: &Access,
        school: SchoolId,
    ) -> Result<Totals, StoreError> {
        let mut totals = Vec::new();
        for kind in KINDS.iter().copied() {
            if access.reach(school, &Channel::Collection(kind)).is_err() {
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
                // A job that has stalled is in progress, too: on the pages it is one or the other.
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

    /// One of the counts; 0 of what there is none of, or what may not be seen.
    pub(super) fn of(&self, kind: Kind, name: &str) -> u64 {
        let own = self.0.iter().find(|(own, _)| *own == kind);
        let counts = own.into_iter().flat_map(|(_, counts)| counts);
        let fitting = counts.filter(|(own, _)| *own == name);
        fitting.map(|(_, count)| count).sum()
    }

    /// What a page's title counts: what somebody should look at. It is none again when all of it is put right.
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

    /// The same as a template is told it; nothing if there is none.
    pub(super) fn told_wrong(&self) -> Option<String> {
        Some(self.wrong()).filter(|wrong| *wrong > 0).map(count)
    }

    /// As a template is told them.
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
