//! The output of the command line: nothing that a terminal would interpret, colours only where they are wanted, and no panic
//! if the reader is gone.

use std::io::{self, IsTerminal, Write};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::Value;

use super::{Exit, Failure};

/// Prints a line on standard output. If the reader is gone, fails without a message.
pub(super) fn print_line(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => unread(),
        _ => Failure::new(
            Exit::Failed,
            format!("cannot write to standard output: {error}"),
        ),
    })
}

/// The failure of a command whose standard output nobody reads any more. It has no message.
pub(super) fn unread() -> Failure {
    Failure::new(Exit::Failed, "")
}

/// Blocks until nobody reads standard output any more, as after `| head`: for ever if it is a file.
pub(super) fn wait_until_unread() {
    let output = io::stdout();
    loop {
        // Whatever is waited for, `poll` also returns when the other end of a pipe is closed.
        let mut outputs = [PollFd::new(&output, PollFlags::empty())];
        match poll(&mut outputs, None) {
            Err(Errno::INTR) => {}
            Ok(_) => return,
            Err(_) => thread::park(),
        }
    }
}

/// Prints a line on standard error.
pub(super) fn complain(line: &str) {
    // If this fails, there is nowhere to report it.
    let _ = writeln!(io::stderr(), "{}", plain(line));
}

/// Whether to write colours to a stream. Respects `NO_COLOR`: <https://no-color.org>.
pub(super) fn has_colours(stream: &impl IsTerminal) -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_unwanted
}

/// Whether a terminal would interpret the character, or reorder the characters around it.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// Whether a text contains nothing that a terminal would interpret.
pub(super) fn is_plain(text: &str) -> bool {
    !text.contains(is_obeyed)
}

/// Returns foreign text (file names, titles, messages of a server) as one line, with special characters escaped: `\u{1b}`.
pub(super) fn plain(text: &str) -> String {
    escaped(text, is_obeyed)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match is_escaped(character) {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// Returns JSON as one line, with special characters escaped. This changes no value.
pub(super) fn json_line(value: &Value) -> String {
    let mut line = String::new();
    // JSON is ASCII without control characters, except within strings. The remaining ones are therefore within strings.
    for character in value.to_string().chars() {
        match is_obeyed(character) {
            true => line += &format!("\\u{:04x}", u32::from(character)),
            false => line.push(character),
        }
    }
    line
}

/// Standard error, as the log writes to it: one event at a time.
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        // Keep the escape character: the subscriber writes its colours with it, and escapes it in other text.
        let is_escaped = |character| is_obeyed(character) && character != '\u{1b}';
        let line = escaped(text.trim_end_matches('\n'), is_escaped);
        // If this fails, there is nowhere to report it.
        let _ = writeln!(io::stderr(), "{line}");
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for (text, shown) in [
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb\t", "a\\nb\\t"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("gpj\u{202e}exe", "gpj\\u{202e}exe"),
            ("Größe 🦀 عربى", "Größe 🦀 عربى"),
        ] {
            assert_eq!(plain(text), shown);
            assert_eq!(is_plain(text), text == shown);
        }
    }

    #[test]
    fn json_keeps_its_values_and_has_nothing_that_a_terminal_would_obey() {
        let value = json!({"a\u{9b}": "\u{1b}[2J\u{7f}\u{202e}é"});
        let line = json_line(&value);
        assert!(is_plain(&line), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
