//! The work of the demo: reading documents in parts, counting words and computing digests.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The counts and the digest of the text that has been read so far.
#[derive(Default)]
pub(super) struct Reading {
    digest: Sha256,
    bytes: u64,
    newlines: u64,
    words: u64,
    in_word: bool,
    ends_with_newline: bool,
    /// The first bytes of a character that the last part ended within.
    cut: Vec<u8>,
}

/// A part is not text.
#[derive(Debug, thiserror::Error)]
#[error("not a text file: no UTF-8 at byte {0}")]
pub(super) struct NotText(u64);

impl Reading {
    /// Processes the next part.
    pub(super) fn take(&mut self, part: &[u8]) -> Result<(), NotText> {
        self.digest.update(part);
        let begin = self.bytes - self.cut.len() as u64;
        self.bytes += part.len() as u64;
        let mut pending = std::mem::take(&mut self.cut);
        pending.extend_from_slice(part);
        let (text, cut) = match str::from_utf8(&pending) {
            Ok(text) => (text, &[][..]),
            Err(error) if error.error_len().is_none() => {
                let (whole, cut) = pending.split_at(error.valid_up_to());
                (str::from_utf8(whole).expect("valid up to here"), cut)
            }
            Err(error) => return Err(NotText(begin + error.valid_up_to() as u64)),
        };
        for character in text.chars() {
            let in_word = !character.is_whitespace();
            self.words += u64::from(in_word && !self.in_word);
            self.in_word = in_word;
            self.newlines += u64::from(character == '\n');
        }
        self.ends_with_newline = text
            .chars()
            .next_back()
            .map_or(self.ends_with_newline, |last| last == '\n');
        self.cut = cut.to_vec();
        Ok(())
    }

    /// Returns the counts, once all parts are processed.
    pub(super) fn finish(self) -> Result<Value, NotText> {
        if !self.cut.is_empty() {
            return Err(NotText(self.bytes - self.cut.len() as u64));
        }
        let unended = self.bytes > 0 && !self.ends_with_newline;
        let sha256: String = self
            .digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(json!({
            "sha256": sha256,
            "bytes": self.bytes,
            "lines": self.newlines + u64::from(unended),
            "words": self.words,
        }))
    }
}

/// Returns a file, or up to `limit` files in a directory, sorted by name. Skips hidden files and build output.
pub(super) fn files(folder: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Skip subdirectories that cannot be read. If the directory itself cannot be read, that is an error.
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if found.is_empty() && folders.is_empty() => return Err(error),
            Err(_) => continue,
        };
        let mut entries: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.')
                || matches!(&*name, "target" | "node_modules" | "data")
                || path.is_symlink()
            {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
            if found.len() == limit {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// A document, read in parts of `part_bytes`.
pub(super) struct Document {
    file: File,
    pub(super) bytes: u64,
    part: Vec<u8>,
}

impl Document {
    pub(super) fn open(path: &Path, part_bytes: usize) -> io::Result<Document> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Document {
            file,
            bytes,
            part: vec![0; part_bytes],
        })
    }

    pub(super) fn parts(&self) -> u64 {
        self.bytes.div_ceil(self.part.len() as u64).max(1)
    }

    /// Returns the next part, which is empty at the end.
    pub(super) fn read_part(&mut self) -> io::Result<&[u8]> {
        let mut filled = 0;
        while filled < self.part.len() {
            match self.file.read(&mut self.part[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.part[..filled])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], part: usize) -> Result<Value, NotText> {
        let mut reading = Reading::default();
        for part in text.chunks(part) {
            reading.take(part)?;
        }
        reading.finish()
    }

    #[test]
    fn counts_do_not_depend_on_where_parts_are_cut() {
        let text = "Größe zählt,\nnicht   Länge. 🦀\nletzte Zeile".as_bytes();
        for part in 1..=text.len() {
            let counts = read(text, part).unwrap();
            assert_eq!(
                (&counts["lines"], &counts["words"]),
                (&json!(3), &json!(7)),
                "{part}"
            );
        }
        assert_eq!(read(b"", 8).unwrap()["lines"], 0);
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(read(b"abc", 2).unwrap()["sha256"], of_abc);
    }

    #[test]
    fn a_file_that_is_not_text_is_recognized_by_its_byte() {
        assert_eq!(
            read(b"ab\xffcd", 3).unwrap_err().to_string(),
            "not a text file: no UTF-8 at byte 2"
        );
        assert_eq!(
            read("é".as_bytes().split_last().unwrap().1, 3)
                .unwrap_err()
                .0,
            0
        );
    }
}
