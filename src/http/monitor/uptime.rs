//! The share of the last day during which a device was online.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::chart::{Stretch, strip};
use super::form::{span, time};
use crate::app::{Caller, Rejected};
use crate::config::{UPTIME_EVENTS, UPTIME_HOURS};
use crate::kind::device::{self, Device, Status};
use crate::log::{StoredSubject, Which};
use crate::service::Tidings;

/// The last changes of a device's status, as far back as the log goes.
pub(super) struct Uptime {
    stretches: Vec<Stretch>,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
}

impl Uptime {
    /// Reads the log of a device.
    pub(super) async fn read(
        tidings: &Tidings,
        caller: &Caller,
        stored: &StoredSubject,
        device: &Device,
    ) -> Result<Uptime, Rejected> {
        let subject = stored.event.subject.clone();
        let updates = Which::Type(&device::DEVICE_STATUS_UPDATE);
        let reads = tidings.reads();
        let events = reads.last_events(caller, device::KIND, subject, updates, UPTIME_EVENTS);
        let mut stretches: Vec<Stretch> = events
            .await?
            .iter()
            .map(|event| Stretch {
                from: event.at,
                status: event.draft.status.to_owned(),
            })
            .collect();
        if stretches.is_empty() {
            // Retention has deleted the last event, so the status has not changed since.
            stretches.push(Stretch {
                from: device.reported_status.1,
                status: device.status.as_str().to_owned(),
            });
        }
        // An event that does not change the status does not begin a new stretch.
        stretches.dedup_by(|next, one| next.status == one.status);
        let until = Utc::now();
        Ok(Uptime {
            stretches,
            from: until - TimeDelta::hours(UPTIME_HOURS),
            until,
        })
    }

    /// Returns the milliseconds in a status, and those in any known status.
    fn share(&self, status: Status) -> (i64, i64) {
        let (mut within, mut all) = (0, 0);
        for (index, stretch) in self.stretches.iter().enumerate() {
            let end = self
                .stretches
                .get(index + 1)
                .map_or(self.until, |next| next.from);
            let length = (end - stretch.from.max(self.from))
                .num_milliseconds()
                .max(0);
            all += length;
            if stretch.status == status.as_str() {
                within += length;
            }
        }
        (within, all)
    }

    /// Returns the values for a template: a strip as text and as a drawing, and the changes, newest first.
    pub(super) fn view(&self, id: &str) -> Value {
        let (online, all) = self.share(Status::Online);
        let percent = match all {
            0 => 0.0,
            _ => online as f64 * 100.0 / all as f64,
        };
        let known = span(TimeDelta::milliseconds(all));
        let is_drop = |stretch: &&Stretch| {
            stretch.from >= self.from && stretch.status == Status::Offline.as_str()
        };
        let drops = self.stretches.iter().filter(is_drop).count();
        let text = format!("Online {percent:.1} % of {known}, {drops} × gone");
        let title = format!("The last {UPTIME_HOURS} hours of {id}");
        let window = (self.from, self.until);
        // Encode the device's id: it may contain characters that the id of an element must not have.
        let name: String = id.bytes().map(|byte| format!("{byte:02x}")).collect();
        let changes = self.stretches.iter().rev().map(
            |stretch| json!({ "at": time(stretch.from, self.until), "status": stretch.status }),
        );
        json!({
            "percent": format!("{percent:.1}"),
            "text": text,
            "hours": UPTIME_HOURS,
            "chart": strip(&format!("uptime-{name}"), &title, &text, &self.stretches, window),
            "are_changes_all": changes.len() < UPTIME_EVENTS,
            "changes": changes.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_what_is_known_of_the_last_day() {
        let until = Utc::now();
        let stretch = |hours, status: &str| Stretch {
            from: until - TimeDelta::hours(hours),
            status: status.into(),
        };
        let of = |stretches: Vec<Stretch>| Uptime {
            stretches,
            from: until - TimeDelta::hours(24),
            until,
        };
        let whole = of(vec![
            stretch(48, "online"),
            stretch(6, "offline"),
            stretch(3, "online"),
        ]);
        let view = whole.view("gate");
        assert_eq!(view["percent"], "87.5");
        assert_eq!(view["text"], "Online 87.5 % of 1 d, 1 × gone");
        assert_eq!(view["changes"].as_array().unwrap().len(), 3);
        let young = of(vec![stretch(2, "unknown"), stretch(1, "online")]);
        assert_eq!(young.view("gate")["percent"], "50.0");
        assert_eq!(of(vec![]).view("gate")["percent"], "0.0");
    }
}
