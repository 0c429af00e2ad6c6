//! Joins that look rows up by their primary key, whatever Postgres knows about the table.
//!
//! While a table has no statistics, as in the first minute of an installation, Postgres expects every index to find a single row.
//! For a plain join on the key it may then choose another index that begins with the same columns, and read all rows of the
//! school for each one that is looked up.

/// Returns a join with the row of `$table` whose primary key `$key` equals `$value`. It reads the first row from the value on, in
/// the order of the key: only the index of the key has this order.
///
/// There is no upper bound: with one, or with `=` for some columns, Postgres prefers to sort what another index finds. So a look-up of
/// a row that does not exist passes the deleted rows up to the next existing row, until `VACUUM` has removed them.
macro_rules! join_by_key {
    ($table:literal, $key:literal = $value:literal, $alias:literal) => {
        concat!(
            " JOIN LATERAL (SELECT * FROM (SELECT * FROM ",
            $table,
            " WHERE (",
            $key,
            ") >= (",
            $value,
            ") ORDER BY ",
            $key,
            " LIMIT 1) AS first WHERE (",
            $key,
            ") = (",
            $value,
            ")) AS ",
            $alias,
            " ON true "
        )
    };
}
pub(super) use join_by_key;
