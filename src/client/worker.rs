//! The name by which the server distinguishes this process from other workers that share a token.

/// Returns the name of this process: its host and process id.
pub(crate) fn worker() -> String {
    format!("{}:{}", host(), std::process::id())
}

/// Returns the name of this machine.
pub(crate) fn host() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    // Bounded, because the server limits the length of `worker`.
    name.chars().take(64).collect()
}
