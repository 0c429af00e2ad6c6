//! Connections to Postgres: TLS as `sslmode` demands, and timeouts for connections that have died.
//!
//! `sslmode` has the values of libpq. `disable` does not encrypt. `allow` and `prefer` (the default) encrypt if the server
//! supports it, and `require` always encrypts; none of them verifies the server. `verify-ca` and `verify-full` verify the
//! server's certificate against those of the system, or of the file `sslrootcert`, and the host's name (libpq verifies the
//! name for `verify-full` only). With `sslrootcert`, `require` verifies both as well.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::CacheSize;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use secrecy::zeroize::Zeroizing;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::database_error;
use crate::config::{POSTGRES_CONNECT_TIMEOUT, POSTGRES_PAUSE_MAX, POSTGRES_TIMEOUT, Secret};
use crate::log::StoreError;
use crate::unverified::Unverified;

/// Where a database is, and how to connect to it.
#[derive(Clone)]
pub struct Address {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    /// Whether statements are prepared once per connection. A pooler in transaction mode may not allow it.
    prepares: bool,
}

/// A connection, and the task that drives it. Aborting the task makes all pending requests fail.
pub(super) struct Connection {
    pub(super) conn: AsyncPgConnection,
    pub(super) driver: AbortHandle,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AddressError {
    /// The URL cannot be parsed. The text does not repeat it, because it may contain a password.
    #[error("is not a Postgres URL: {0}; write `postgres://user:password@host:5432/database`")]
    Url(String),
    /// The file of certificates cannot be used.
    #[error("names `sslrootcert={path}`, which cannot be used: {reason}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificates of the system cannot be used.
    #[error(
        "demands a verified certificate, but this system has none to verify it with; name a file by `sslrootcert`"
    )]
    NoRoots,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").finish_non_exhaustive()
    }
}

/// What `sslmode` demands.
enum Mode {
    Unverified(SslMode),
    Verified(Option<PathBuf>),
}

impl Address {
    /// Parses a URL. With `prepares`, statements are prepared once per connection.
    pub fn parse(url: &Secret, prepares: bool) -> Result<Address, AddressError> {
        let (url, mode) = split_mode(url.reveal())?;
        let unreadable = |error: tokio_postgres::Error| AddressError::Url(cause(&error));
        let mut config = tokio_postgres::Config::from_str(&url).map_err(unreadable)?;
        if config.get_hosts().is_empty() {
            return Err(AddressError::Url("it names no host".to_owned()));
        }
        config
            .connect_timeout(POSTGRES_CONNECT_TIMEOUT)
            .tcp_user_timeout(POSTGRES_TIMEOUT)
            .keepalives_idle(POSTGRES_TIMEOUT / 2)
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if config.get_application_name().is_none() {
            config.application_name("tidings");
        }
        let verifier: Arc<dyn ServerCertVerifier> = match mode {
            Mode::Unverified(mode) => {
                config.ssl_mode(mode);
                Arc::new(Unverified(provider()))
            }
            Mode::Verified(roots) => {
                config.ssl_mode(SslMode::Require);
                verifier(roots)?
            }
        };
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring supports the default versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Address {
            config,
            tls: MakeRustlsConnect::new(tls),
            prepares,
        })
    }

    /// Returns the name of the database.
    pub fn database(&self) -> &str {
        let user = self.config.get_user().unwrap_or_default();
        self.config.get_dbname().unwrap_or(user)
    }

    /// Whether statements are prepared once per connection.
    pub(super) fn prepares(&self) -> bool {
        self.prepares
    }

    /// Opens a connection, for as long as the current runtime runs.
    pub(crate) async fn connect(&self) -> Result<AsyncPgConnection, StoreError> {
        Ok(self.connect_driven().await?.conn)
    }

    /// Like [`Address::connect`], but also returns the task that drives the connection.
    pub(super) async fn connect_driven(&self) -> Result<Connection, StoreError> {
        let connecting = async {
            let unreachable = |error: tokio_postgres::Error| {
                let reason = cause(&error);
                if is_refusal(&error) {
                    StoreError::Database(format!("Postgres refuses the connection: {reason}"))
                } else if rejects_certificate(&error) {
                    StoreError::Database(format!(
                        "the certificate of Postgres is not accepted: {reason}"
                    ))
                } else {
                    StoreError::Unavailable(format!("Postgres cannot be reached: {reason}"))
                }
            };
            let connected = self.config.connect(self.tls.clone()).await;
            let (client, connection) = connected.map_err(unreachable)?;
            // The task ends with the client. If it ends early, the client's requests fail with the reason.
            let driver = tokio::spawn(connection).abort_handle();
            // Diesel prepares its first statements here. A pooler must not spread them over several connections.
            let is_one_transaction = !self.prepares;
            if is_one_transaction {
                let begin = begin("BEGIN");
                client.batch_execute(&begin).await.map_err(unreachable)?;
            }
            let failed = |error: &dyn fmt::Display| StoreError::Unavailable(error.to_string());
            let conn = AsyncPgConnection::try_from(client).await;
            let mut conn = conn.map_err(|error| failed(&error))?;
            if is_one_transaction {
                conn.set_prepared_statement_cache_size(CacheSize::Disabled);
                let committed = conn.batch_execute("COMMIT").await;
                committed.map_err(|error| failed(&error))?;
            }
            Ok(Connection { conn, driver })
        };
        // Boxed, because this future is large and rarely used, and would otherwise enlarge that of each transaction.
        in_time(Box::pin(connecting)).await
    }

    /// Opens a separate client for notifications. Returns it with the future that drives it.
    pub(crate) async fn client(
        &self,
    ) -> Result<
        (
            tokio_postgres::Client,
            tokio_postgres::Connection<
                tokio_postgres::Socket,
                <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<
                    tokio_postgres::Socket,
                >>::Stream,
            >,
        ),
        tokio_postgres::Error,
    > {
        self.config.connect(self.tls.clone()).await
    }
}

// So that a request outlives two such transactions, one after the other.
const _: () = assert!(POSTGRES_PAUSE_MAX.as_secs() * 2 <= POSTGRES_TIMEOUT.as_secs());

/// Returns the statements that begin a transaction with this `BEGIN`. Postgres ends the transaction if this node says nothing for
/// [`POSTGRES_PAUSE_MAX`]: a node that is suspended or cut off must not keep locks for which the others wait.
pub(super) fn begin(statement: &str) -> String {
    let millis = POSTGRES_PAUSE_MAX.as_millis();
    format!("{statement}; SET LOCAL idle_in_transaction_session_timeout = {millis}")
}

/// Awaits a query, for at most [`POSTGRES_TIMEOUT`].
pub(super) async fn bounded<T>(
    query: impl Future<Output = QueryResult<T>>,
) -> Result<T, StoreError> {
    in_time(async { query.await.map_err(database_error) }).await
}

/// Awaits one or several steps, for at most [`POSTGRES_TIMEOUT`] in total.
pub(super) async fn in_time<T>(
    steps: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable("Postgres does not answer".into());
    timeout(POSTGRES_TIMEOUT, steps).await.map_err(|_| late())?
}

/// Returns whether Postgres refuses a connection for a lasting reason, such as a wrong password or an unknown database.
/// Other reasons are temporary: it is starting or shutting down, or has no connections left.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    const PASSING: [&str; 3] = ["08", "53", "57"];
    let code = error.code().map(tokio_postgres::error::SqlState::code);
    code.is_some_and(|code| !PASSING.iter().any(|class| code.starts_with(class)))
}

/// Returns whether this node does not accept the server's certificate, for a reason that does not pass with time.
fn rejects_certificate(error: &tokio_postgres::Error) -> bool {
    let of_tls = |error: &(dyn std::error::Error + 'static)| {
        let error = error.downcast_ref::<std::io::Error>()?.get_ref()?;
        error.downcast_ref::<rustls::Error>().cloned()
    };
    match std::error::Error::source(error).and_then(of_tls) {
        // The clock of this machine may not be set yet.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => false,
        Some(rustls::Error::InvalidCertificate(_)) => true,
        _ => false,
    }
}

/// Returns the innermost cause of an error, which is the most specific.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Removes `sslmode` and `sslrootcert` from a URL, because `tokio_postgres` does not support all their values.
fn split_mode(url: &str) -> Result<(Zeroizing<String>, Mode), AddressError> {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots, mut others) = (None, None, Vec::new());
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", value)) => {
                let path = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                roots = Some(PathBuf::from(&*path));
            }
            _ => others.push(parameter),
        }
    }
    let mode = match mode {
        Some("disable") => Mode::Unverified(SslMode::Disable),
        None | Some("allow" | "prefer") => Mode::Unverified(SslMode::Prefer),
        Some("require") if roots.is_none() => Mode::Unverified(SslMode::Require),
        Some("require" | "verify-ca" | "verify-full") => Mode::Verified(roots),
        Some(other) => {
            let known = "disable, allow, prefer, require, verify-ca or verify-full";
            let reason = format!("`sslmode` is `{other}`, but must be {known}");
            return Err(AddressError::Url(reason));
        }
    };
    let rest = match others.is_empty() {
        true => place.to_owned(),
        false => format!("{place}?{}", others.join("&")),
    };
    Ok((Zeroizing::new(rest), mode))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn verifier(file: Option<PathBuf>) -> Result<Arc<dyn ServerCertVerifier>, AddressError> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            let failed = |reason: String| AddressError::Roots {
                path: path.clone(),
                reason,
            };
            let certificates =
                CertificateDer::pem_file_iter(&path).map_err(|error| failed(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| failed(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| failed(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(failed("it contains no certificate".into()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    match verifier.build() {
        Ok(verifier) => Ok(verifier),
        Err(_) => Err(AddressError::NoRoots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, AddressError> {
        Address::parse(&url.into(), true)
    }

    #[test]
    fn a_url_names_a_database_and_how_to_encrypt() {
        let address = parse("postgres://u:p@h:5433/d?sslmode=disable").unwrap();
        assert_eq!(address.database(), "d");
        assert_eq!(address.config.get_ssl_mode(), SslMode::Disable);
        let address = parse("postgresql://u@h?application_name=x").unwrap();
        assert_eq!(address.database(), "u");
        assert_eq!(address.config.get_ssl_mode(), SslMode::Prefer);
        assert_eq!(address.config.get_application_name(), Some("x"));
    }

    #[test]
    fn a_url_that_cannot_be_used_is_rejected_without_its_password() {
        for url in [
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?sslmode=maybe",
            "postgres://u:secret@h/d?colour=red",
            "postgres://u:secret@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
