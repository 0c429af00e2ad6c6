//! Reads from `/proc` how far a command and its children have read their largest input file, and how much memory they use. On systems other
//! than Linux, it finds nothing.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The minimum size of a file that counts as an input, in bytes. Smaller files are read in no time.
const SIZE_MIN_BYTES: u64 = 1024 * 1024;
/// Maximum number of processes to inspect.
const PROCESSES_MAX: usize = 64;
/// Maximum number of open files to inspect in each process.
const FILES_MAX: usize = 256;
/// The bits of `flags` that contain the access mode: 0 means read-only.
const ACCESS_MODE: u32 = 0o3;

/// The large files that a command reads.
#[derive(Default)]
pub(super) struct Inputs {
    /// What was read at the last look.
    known: HashSet<FileId>,
}

/// A device and an inode.
type FileId = (u64, u64);

struct Input {
    id: FileId,
    size: u64,
    position: u64,
}

impl Inputs {
    /// Returns how much of the largest input of a process and its children has been read, in percent.
    ///
    /// A file counts only if it was open at the previous look, too: every program briefly opens its libraries when it starts.
    pub(super) fn look(&mut self, process: u32) -> Option<f64> {
        let inputs: Vec<Input> = with_children(process)
            .into_iter()
            .flat_map(inputs)
            .collect();
        let known = inputs.iter().filter(|input| self.known.contains(&input.id));
        let largest = known.max_by_key(|input| input.size);
        let percent = largest.map(|input| {
            let position = input.position.min(input.size);
            position as f64 / input.size as f64 * 100.0
        });
        self.known = inputs.iter().map(|input| input.id).collect();
        percent
    }
}

/// Returns the most memory that a process or one of its children has taken so far, in bytes.
pub(super) fn peak_memory(process: u32) -> Option<u64> {
    let processes = with_children(process).into_iter();
    processes.filter_map(own_peak_memory).max()
}

/// Returns the most memory that a process has taken so far, in bytes.
pub(super) fn own_peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn with_children(process: u32) -> Vec<u32> {
    let mut processes = vec![process];
    let mut at = 0;
    while let Some(id) = processes.get(at).copied() {
        at += 1;
        processes.extend(children(id));
        processes.truncate(PROCESSES_MAX);
    }
    processes
}

fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let ids = children.split_whitespace();
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// Returns the large files that a process reads.
fn inputs(process: u32) -> Vec<Input> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let Ok(files) = fs::read_dir(folder.join("fd")) else {
        return Vec::new();
    };
    let files = files.take(FILES_MAX).flatten();
    files
        .filter_map(|file| input(&folder, &file.path()))
        .collect()
}

fn input(folder: &Path, file: &Path) -> Option<Input> {
    let metadata = fs::metadata(file).ok()?;
    if !metadata.is_file() || metadata.len() < SIZE_MIN_BYTES {
        return None;
    }
    let info = fs::read_to_string(folder.join("fdinfo").join(file.file_name()?)).ok()?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    let flags = u32::from_str_radix(field("flags:")?.trim(), 8).ok()?;
    let position: u64 = field("pos:")?.trim().parse().ok()?;
    // A file that is only mapped into memory, such as a cache, has no position.
    (flags & ACCESS_MODE == 0 && position > 0).then_some(Input {
        id: (metadata.dev(), metadata.ino()),
        size: metadata.len(),
        position,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Seek, SeekFrom};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_file_is_an_input_once_it_is_still_read_at_the_next_look() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 * SIZE_MIN_BYTES).unwrap();
        let mut input = fs::File::open(file.path()).unwrap();
        input.seek(SeekFrom::Start(16 * SIZE_MIN_BYTES)).unwrap();
        let mut reader = Command::new("sleep")
            .arg("600")
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut inputs = Inputs::default();
        let percents = [inputs.look(reader.id()), inputs.look(reader.id())];
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert_eq!(percents, [None, Some(25.0)]);
        assert_eq!(inputs.look(reader.id()), None);
    }
}
