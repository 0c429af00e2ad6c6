//! `INSERT … ON CONFLICT … DO UPDATE`, and `UPDATE` of the columns that change most, as cached prepared statements.
//!
//! Diesel prepares its own updates and upserts again each time, because their columns may vary; in the writer, that would
//! cost more than the write itself. Here the columns are fixed, so the statement is cached by its type, which is Diesel's
//! documented way to add a custom query.

/// Defines `$name(&row)`, an upsert of a row by its key: the columns in `once` are written only on insert, those in `set`
/// each time.
macro_rules! upsert {
    (
        $(#[$meta:meta])*
        $name:ident<$life:lifetime>($row:ty) into $table:literal
        by ($first:ident: $first_type:ty $(, $key:ident: $key_type:ty)*)
        once ($($once:ident: $once_type:ty),*)
        set ($head:ident: $head_type:ty $(, $column:ident: $column_type:ty)*)
    ) => {
        $(#[$meta])*
        pub(super) struct $name<$life>(pub(super) &$life $row);

        impl diesel::query_builder::QueryFragment<diesel::sqlite::Sqlite> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::sqlite::Sqlite>,
            ) -> diesel::QueryResult<()> {
                let row = self.0;
                out.push_sql(concat!(
                    "INSERT INTO ", $table, " (", stringify!($first) $(, ", ", stringify!($key))* $(, ", ", stringify!($once))*,
                    ", ", stringify!($head) $(, ", ", stringify!($column))*, ") VALUES ("
                ));
                out.push_bind_param::<$first_type, _>(&row.$first)?;
                $(out.push_sql(", "); out.push_bind_param::<$key_type, _>(&row.$key)?;)*
                $(out.push_sql(", "); out.push_bind_param::<$once_type, _>(&row.$once)?;)*
                out.push_sql(", ");
                out.push_bind_param::<$head_type, _>(&row.$head)?;
                $(out.push_sql(", "); out.push_bind_param::<$column_type, _>(&row.$column)?;)*
                out.push_sql(concat!(
                    ") ON CONFLICT (", stringify!($first) $(, ", ", stringify!($key))*, ") DO UPDATE SET ",
                    stringify!($head), " = excluded.", stringify!($head)
                    $(, ", ", stringify!($column), " = excluded.", stringify!($column))*
                ));
                Ok(())
            }
        }

        impl diesel::query_builder::QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_dsl::RunQueryDsl<diesel::sqlite::SqliteConnection> for $name<'_> {}
    };
}

/// Defines `$name(&row)`, an update of some columns of a row by its key.
macro_rules! update {
    (
        $(#[$meta:meta])*
        $name:ident<$life:lifetime>($row:ty) of $table:literal
        by ($first:ident: $first_type:ty, $key:ident: $key_type:ty)
        set ($head:ident: $head_type:ty $(, $column:ident: $column_type:ty)*)
    ) => {
        $(#[$meta])*
        pub(super) struct $name<$life>(pub(super) &$life $row);

        impl diesel::query_builder::QueryFragment<diesel::sqlite::Sqlite> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::sqlite::Sqlite>,
            ) -> diesel::QueryResult<()> {
                let row = self.0;
                out.push_sql(concat!("UPDATE ", $table, " SET ", stringify!($head), " = "));
                out.push_bind_param::<$head_type, _>(&row.$head)?;
                $(
                    out.push_sql(concat!(", ", stringify!($column), " = "));
                    out.push_bind_param::<$column_type, _>(&row.$column)?;
                )*
                out.push_sql(concat!(" WHERE ", stringify!($first), " = "));
                out.push_bind_param::<$first_type, _>(&row.$first)?;
                out.push_sql(concat!(" AND ", stringify!($key), " = "));
                out.push_bind_param::<$key_type, _>(&row.$key)
            }
        }

        impl diesel::query_builder::QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_dsl::RunQueryDsl<diesel::sqlite::SqliteConnection> for $name<'_> {}
    };
}

pub(super) use {update, upsert};
