//! `docs/troubleshooting.md` quotes the texts that there are.

use std::path::Path;

use crate::support::page::{blocks, shell, text};
use crate::support::process::{blocking, run};
use crate::support::*;

const PAGE: &str = "docs/troubleshooting.md";

/// The program's source as its texts are read: continued lines are one, and quotes are themselves.
fn source() -> String {
    fn gather(folder: &Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut all = String::new();
    gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    joined(&all)
}

fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let mut joined = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        joined.push_str(part.trim_start());
    }
    joined.replace("\\\"", "\"")
}

/// The quotations of the page, which stand in two or three backticks.
fn quotations() -> Vec<String> {
    let page = text(PAGE);
    let mut is_code = false;
    let mut quoted = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            // Outside of three backticks there are pairs of two.
            for (index, part) in line.split("```").enumerate() {
                if index % 2 == 1 {
                    quoted.push(part.trim().to_owned());
                    continue;
                }
                let inner = part.split("``").skip(1).step_by(2);
                quoted.extend(inner.map(|quote| quote.trim().to_owned()));
            }
        }
    }
    quoted
}

/// What a text says whatever varies in it.
fn fixed(quotation: &str) -> Vec<&str> {
    let parts = quotation.split('…').map(str::trim);
    parts.filter(|part| part.len() > 2).collect()
}

/// Whether these parts stand there one after the other, as in one text.
fn stand_together(source: &str, parts: &[&str]) -> bool {
    const TEXT_MAX_BYTES: usize = 200;
    let Some((first, rest)) = parts.split_first() else {
        return false;
    };
    source.match_indices(first).any(|(at, _)| {
        let mut place = at + first.len();
        rest.iter().all(|part| {
            let found = source[place..]
                .find(part)
                .filter(|gap| *gap < TEXT_MAX_BYTES);
            place += found.unwrap_or_default() + part.len();
            found.is_some()
        })
    })
}

#[test]
fn every_text_that_the_page_quotes_is_one_of_the_server() {
    let source = source();
    let quotations = quotations();
    assert!(quotations.len() > 50, "{}", quotations.len());
    for quotation in &quotations {
        let parts = fixed(quotation);
        assert!(stand_together(&source, &parts), "{quotation}");
    }
    for wrong in [
        "the token has expired: `exp` was … h ago",
        "no such text",
        "",
    ] {
        assert!(!stand_together(&source, &fixed(wrong)), "{wrong}");
    }
}

#[test]
fn every_reason_why_a_token_is_rejected_is_on_the_page() {
    let page = text(PAGE);
    let mut count = 0;
    for file in ["src/auth/token.rs", "src/auth/mod.rs"] {
        let source = joined(&text(file));
        let (_, of_tokens) = source.split_once("Error {").unwrap();
        let of_tokens = of_tokens.split("\n}\n").next().unwrap();
        for message in of_tokens.split("#[error(").skip(1) {
            let (_, message) = message.split_once('"').unwrap();
            let message = message.split('"').next().unwrap();
            let parts = message.split(['{', '}']).step_by(2);
            for part in parts.map(str::trim).filter(|part| part.len() > 9) {
                assert!(page.contains(part), "{file}: {message}");
                count += 1;
            }
        }
    }
    assert!(count > 15, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn the_two_questions_of_the_page_are_answered_by_a_server_that_is_well() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let server = server().await;
    server.running_job("a").await;
    let commands = &blocks(PAGE, "sh")[0];
    let mut shell = shell(server.folder.path(), commands, &server.url);
    shell.env("TOKEN", viewer(1));
    let output = blocking(move || run(&mut shell)).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.starts_with("ready"), "{stdout}");
    assert!(stdout.contains(r#""job_id":"a""#), "{stdout}");
}
