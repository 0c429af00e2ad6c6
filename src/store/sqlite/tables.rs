//! The list of all kinds' tables.

use diesel::prelude::*;

use super::characteristics::CharacteristicsTable;
use super::devices::DevicesTable;
use super::enrollments::EnrollmentsTable;
use super::jobs::JobsTable;
use super::parts::Parts;
use super::schedules::SchedulesTable;
use super::table::{Table, unreadable};
use crate::id::Kind;
use crate::kind;

/// The table of each kind. A new kind adds a module and a line here.
pub(super) const TABLES: &[(Kind, &dyn Table)] = &[
    (kind::job::KIND, &JobsTable),
    (kind::enrollment::KIND, &EnrollmentsTable),
    (kind::device::KIND, &DevicesTable),
    (kind::characteristic::KIND, &CharacteristicsTable),
    (kind::schedule::KIND, &SchedulesTable),
];

/// Returns the table of this kind.
pub(super) fn table(kind: Kind) -> &'static dyn Table {
    let found = TABLES.iter().find(|(known, _)| *known == kind);
    found.expect("every kind has a table").1
}

/// Returns the table of the parts of a kind whose subjects have parts.
pub(super) fn parts(kind: Kind) -> QueryResult<&'static dyn Parts> {
    let found = table(kind).parts();
    found.ok_or_else(|| unreadable("a part of a subject that has none"))
}
