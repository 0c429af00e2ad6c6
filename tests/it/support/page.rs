//! The pages of the documentation, and their code blocks and commands, exactly as published.

use std::path::Path;
use std::process::Command;

use super::process::{binary, command};

/// Returns the text of a file of this repository. It is read at run time, so that a change to it requires no build.
pub(crate) fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the code blocks of a page in this language, in order.
pub(crate) fn blocks(page: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let page = text(page);
    let blocks = page.split(&start).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// Returns a shell in `folder` that runs a script of a page, with the binary on its path and this server instead of the
/// page's.
pub(crate) fn shell(folder: &Path, script: &str, server: &str) -> Command {
    let script = script.replace("http://127.0.0.1:8000", server);
    let path = format!(
        "{}:{}",
        binary().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(folder)
        .env("PATH", path);
    for (name, value) in command(folder).get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}
