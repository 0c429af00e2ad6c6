//! The server that a command talks to, and its credential. All such commands have the same options: `--url`, `--token` and `--school`.

use clap::Args;

use super::client::{self, Client, DEFAULT_URL};
use super::{Exit, Failure};
use crate::config::Secret;
use crate::id::SchoolId;

/// The variable with the school.
pub(super) const SCHOOL_VARIABLE: &str = "TIDINGS_SCHOOL_ID";

/// The options of a command that talks to a server. clap does not check them: its error would show the token, and `tidings run` must run
/// its command even if they are invalid.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The URL of the server.
    #[arg(long, visible_alias = "server", global = true, env = "TIDINGS_URL", default_value = DEFAULT_URL)]
    url: String,
    /// A token. Prefer the environment variable: other users can see the command line.
    #[arg(long, global = true, env = "TIDINGS_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// The school, if the token covers several.
    #[arg(long, global = true, env = SCHOOL_VARIABLE)]
    school: Option<String>,
}

/// A server, and the credential for it.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) url: String,
    pub(super) token: Option<Secret>,
    /// The school that each request names, for a token that covers several.
    pub(super) school: Option<SchoolId>,
}

impl Options {
    /// Checks the options. Empty variables count as unset.
    pub(super) fn account(&self) -> Result<Account, Failure> {
        let url = client::url(&self.url).map_err(|problem| {
            let problem = format!("the URL (--url, TIDINGS_URL) {problem}");
            Failure::new(Exit::Usage, problem)
        })?;
        Ok(Account {
            url,
            token: token(self.token.clone())?,
            school: school(self.school.as_deref())?,
        })
    }
}

impl Account {
    /// Creates a client for the server.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let client = Client::new(&self.url, self.token.clone())?;
        Ok(client.of_school(self.school))
    }
}

/// Checks a token. An empty variable counts as unset.
pub(super) fn token(token: Option<Secret>) -> Result<Option<Secret>, Failure> {
    let token = token.filter(|token| !token.reveal().is_empty());
    if token
        .as_ref()
        .is_some_and(|token| !is_visible(token.reveal()))
    {
        let problem = "the token (--token, TIDINGS_TOKEN) has characters that no token contains, such as spaces or line breaks";
        return Err(Failure::new(Exit::Usage, problem));
    }
    Ok(token)
}

/// Parses a school. An empty variable counts as unset.
pub(super) fn school(text: Option<&str>) -> Result<Option<SchoolId>, Failure> {
    let text = text.filter(|text| !text.is_empty());
    text.map(str::parse).transpose().map_err(|error| {
        let problem = format!("the school (--school, {SCHOOL_VARIABLE}): {error}");
        Failure::new(Exit::Usage, problem)
    })
}

/// Whether a text is valid in a header: visible ASCII.
pub(super) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
