//! The [search in texts](crate::store::texts) as SQL functions.

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::SqliteConnection;

pub(super) use crate::store::texts::{contains, folded_json, folded_texts, value_contains, wanted};

diesel::define_sql_function! {
    /// Whether a text contains another one that [`wanted`] has returned.
    fn mentions(text: Nullable<Text>, wanted: Text) -> Bool;
}

diesel::define_sql_function! {
    /// Like `mentions`, for the strings and numbers in a JSON text.
    fn mentions_value(json: Text, wanted: Text) -> Bool;
}

/// Registers the functions with a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    mentions_utils::register_impl(conn, |text: Option<String>, wanted: String| {
        text.is_some_and(|text| contains(&text, &wanted))
    })?;
    mentions_value_utils::register_impl(conn, |json: String, wanted: String| {
        value_contains(&json, &wanted)
    })
}
