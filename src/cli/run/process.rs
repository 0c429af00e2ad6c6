//! The command as a process: how it is started, signalled and waited for.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pty_process::blocking as pseudo;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};

use super::observer::Stream;
use super::tty::{self, Raw};

/// A running command.
#[derive(Clone)]
pub(super) struct Process(Arc<Shared>);

struct Shared {
    id: u32,
    /// Whether it leads its own process group.
    leads_group: bool,
    /// Until it has been waited for. Afterwards, its id may be that of another process.
    child: Mutex<Option<Child>>,
}

/// A command that has been started, with the other ends of its outputs.
pub(super) struct Started {
    pub(super) process: Process,
    /// The sources of the outputs to relay.
    pub(super) outputs: Vec<(Stream, OwnedFd)>,
    /// Its pseudo-terminal, and the user's terminal in raw mode.
    pub(super) terminal: Option<(OwnedFd, Raw)>,
    /// A pseudo-terminal for its output only.
    pub(super) screen: Option<OwnedFd>,
}

/// Starts a command. Each of its outputs is a terminal where this process's is one, and a pipe otherwise.
///
/// If this process has the terminal, input and output, the command gets a pseudo-terminal as its controlling terminal, in a session of its
/// own. Otherwise, it stays in this session and keeps this process's input, so that it can still ask for a password on `/dev/tty`,
/// and be suspended and interrupted by the shell's keys.
pub(super) fn start(command: &[OsString]) -> io::Result<Started> {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    match has_terminal.then(Raw::enter).flatten() {
        Some(raw) => start_in_terminal(command, raw),
        None => start_beside(command),
    }
}

fn start_in_terminal(command: &[OsString], raw: Raw) -> io::Result<Started> {
    let (ours, theirs) = pseudo::open().map_err(io::Error::other)?;
    tcsetattr(&theirs, OptionalActions::Now, raw.original())?;
    tty::resize(&ours);
    let mut child = pseudo::Command::new(&command[0]).args(&command[1..]);
    let mut outputs = Vec::new();
    if !io::stderr().is_terminal() {
        let (reader, writer) = io::pipe()?;
        child = child.stderr(writer);
        outputs.push((Stream::Errors, reader.into()));
    }
    let child = child.spawn(theirs).map_err(cause)?;
    let ours = OwnedFd::from(ours);
    outputs.push((Stream::Output, ours.try_clone()?));
    Ok(Started {
        process: Process::new(child, true),
        outputs,
        terminal: Some((ours, raw)),
        screen: None,
    })
}

fn start_beside(command: &[OsString]) -> io::Result<Started> {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]);
    let mut outputs = Vec::new();
    let mut screen = None;
    for (stream, is_terminal) in [
        (Stream::Output, io::stdout().is_terminal()),
        (Stream::Errors, io::stderr().is_terminal()),
    ] {
        let target: Stdio = if is_terminal {
            let (_, theirs) = match &mut screen {
                Some(open) => open,
                None => screen.insert(open_screen()?),
            };
            theirs.try_clone()?.into()
        } else {
            let (reader, writer) = io::pipe()?;
            outputs.push((stream, reader.into()));
            writer.into()
        };
        match stream {
            Stream::Output => child.stdout(target),
            Stream::Errors => child.stderr(target),
        };
    }
    // Without a terminal, signals reach only this process. In its own group, the command gets them together with its children.
    let has_terminal = std::fs::File::open("/dev/tty").is_ok();
    if !has_terminal {
        child.process_group(0);
    }
    let started = child.spawn()?;
    // Close this process's copies of the command's ends; otherwise the outputs would never end.
    drop(child);
    let screen = screen.map(|(ours, _)| ours);
    if let Some(ours) = &screen {
        let stream = match io::stdout().is_terminal() {
            true => Stream::Output,
            false => Stream::Errors,
        };
        outputs.push((stream, ours.try_clone()?));
    }
    Ok(Started {
        process: Process::new(started, !has_terminal),
        outputs,
        terminal: None,
        screen,
    })
}

/// Opens a pseudo-terminal for output only. It does not translate line feeds, because the user's terminal does.
fn open_screen() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pseudo::open().map_err(io::Error::other)?;
    let mut mode = tcgetattr(&theirs)?;
    mode.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&theirs, OptionalActions::Now, &mode)?;
    tty::resize(&ours);
    Ok((ours.into(), theirs.as_fd().try_clone_to_owned()?))
}

/// Returns why a command could not be started, so that "not found" can be distinguished.
fn cause(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl Process {
    fn new(child: Child, leads_group: bool) -> Process {
        Process(Arc::new(Shared {
            id: child.id(),
            leads_group,
            child: Mutex::new(Some(child)),
        }))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id
    }

    /// Whether it is in another process group, so that the terminal's signals to this one do not reach it.
    pub(super) fn leads_group(&self) -> bool {
        self.0.leads_group
    }

    /// Returns how it ended, if it has.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.lock();
        let status = child.as_mut()?.try_wait().ok().flatten();
        if status.is_some() {
            *child = None;
        }
        status
    }

    /// Sends a signal to it, and to its children if it leads a process group. Does nothing once it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        let child = self.lock();
        let Some(id) = i32::try_from(self.0.id).ok().and_then(Pid::from_raw) else {
            return;
        };
        if child.is_some() {
            // Fails if it has just ended.
            let _ = match self.0.leads_group {
                true => kill_process_group(id, signal),
                false => kill_process(id, signal),
            };
        }
    }

    /// Whether the suspend key (Ctrl-Z) suspends it: it neither handles nor ignores the signal.
    pub(super) fn is_suspended_by_default(&self) -> bool {
        let path = format!("/proc/{}/status", self.0.id);
        std::fs::read_to_string(path).is_ok_and(|status| {
            !is_in_mask(&status, "SigCgt:", Signal::TSTP)
                && !is_in_mask(&status, "SigIgn:", Signal::TSTP)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a signal is in one of the masks of `/proc/<id>/status`.
pub(super) fn is_in_mask(status: &str, mask: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}
