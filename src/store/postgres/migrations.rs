//! Brings the tables of a database up to date. Nodes that start at the same time wait for one another. Nodes of
//! neighbouring versions can share a database: an older program can use tables to which a newer one has added something.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::connect::begin;

/// The migrations, by version. Each only adds to the previous ones, so that nodes of neighbouring versions can share a
/// database.
const MIGRATIONS: &[(&str, &str)] = &[
    (
        "00000000000001",
        include_str!("../../../migrations/postgres/00000000000001_log/up.sql"),
    ),
    (
        "00000000000002",
        include_str!("../../../migrations/postgres/00000000000002_pings/up.sql"),
    ),
];

/// The key of the advisory lock under which one node at a time migrates: the bytes of `tidings`.
const LOCK: i64 = 0x0074_6964_696e_6773;

/// Whether this program can use the tables.
pub(super) enum Migrated {
    /// The tables are those of this program.
    Done,
    /// A newer program has changed the tables in this version so that this program cannot use them.
    Newer(String),
}

#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Returns the migration that a program must know to use the tables. A migration that makes the tables unusable for older
/// programs sets it.
async fn needed(conn: &mut AsyncPgConnection) -> QueryResult<Option<String>> {
    let query = "SELECT value AS version FROM meta WHERE key = 'needed_migration'";
    let needed: Vec<Applied> = diesel::sql_query(query).load(conn).await?;
    Ok(needed.into_iter().next().map(|row| row.version))
}

/// Applies the migrations that are missing, all in one transaction.
pub(super) async fn migrate(conn: &mut AsyncPgConnection) -> QueryResult<Migrated> {
    // The table is Diesel's own, so that its command line can be used as well.
    conn.batch_execute(&format!(
        "{begin};
         SELECT pg_advisory_xact_lock({LOCK});
         CREATE TABLE IF NOT EXISTS __diesel_schema_migrations (
             version VARCHAR(50) PRIMARY KEY,
             run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
         );",
        begin = begin("BEGIN")
    ))
    .await?;
    let query = "SELECT version::text AS version FROM __diesel_schema_migrations ORDER BY version";
    let applied: Vec<Applied> = diesel::sql_query(query).load(conn).await?;
    let newest = MIGRATIONS.last().map_or("", |(version, _)| version);
    let is_newer = applied
        .iter()
        .any(|migration| migration.version.as_str() > newest);
    if is_newer
        && let Some(needed) = needed(conn)
            .await?
            .filter(|version| version.as_str() > newest)
    {
        conn.batch_execute("ROLLBACK").await?;
        return Ok(Migrated::Newer(needed));
    }
    for (version, sql) in MIGRATIONS {
        if applied
            .iter()
            .any(|migration| migration.version == *version)
        {
            continue;
        }
        conn.batch_execute(sql).await?;
        diesel::sql_query("INSERT INTO __diesel_schema_migrations (version) VALUES ($1)")
            .bind::<Text, _>(version)
            .execute(conn)
            .await?;
    }
    conn.batch_execute("COMMIT").await?;
    Ok(Migrated::Done)
}
