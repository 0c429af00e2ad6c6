//! A running command, with the threads that serve it.

use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

use rustix::process::Signal;

use super::observer::{Observer, Stream};
use super::outcome::{self, Ended};
use super::process::{self, Process, Started};
use super::relay::Relay;
use super::reporter::Board;
use super::script::{self, Descriptor, ProgressFile};
use super::signals::{self, Event, Signals};
use super::taskbar::Taskbar;
use super::tty::{self, Continuations, Keyboard};
use super::watcher::Watcher;
use super::{Arguments, input};

/// A command that runs, and everything that serves it.
pub(super) struct Running {
    pub(super) process: Process,
    signals: Signals,
    relays: Vec<JoinHandle<Option<OwnedFd>>>,
    screen: Option<OwnedFd>,
    /// Restores the terminal's mode when it is dropped.
    raw: Option<Arc<tty::Raw>>,
    keyboard: Option<JoinHandle<()>>,
    script: Option<JoinHandle<()>>,
    watcher: JoinHandle<Option<u64>>,
    /// The peak memory of this process when the command had started, in bytes.
    own_memory_bytes: u64,
    interrupted: Arc<Mutex<bool>>,
    continuations: Arc<Continuations>,
    /// Closed when the command has ended.
    alive: io::PipeWriter,
}

impl Running {
    pub(super) fn start(
        arguments: &Arguments,
        descriptor: Option<Descriptor>,
        observer: &Arc<Mutex<Observer>>,
        board: &Arc<Board>,
    ) -> io::Result<Running> {
        let file = arguments.progress_file.clone().map(ProgressFile::new);
        let signals = Signals::receive()?;
        let Started {
            process,
            outputs,
            terminal,
            screen,
        } = process::start(&arguments.command)?;
        // Read this after the fork: until `exec`, the command counts as much memory as this process had,
        // and a peak never falls.
        let own_memory_bytes = input::own_peak_memory(std::process::id()).unwrap_or(0);
        let descriptor = descriptor.map(Descriptor::into_reader);
        let (ended, alive) = io::pipe()?;
        let ended = Arc::new(ended);
        let is_shown = io::stdout().is_terminal() && arguments.taskbar.is_shown();
        let relay = |(stream, source)| {
            let taskbar =
                (is_shown && stream == Stream::Output).then(|| Taskbar::new(Arc::clone(board)));
            let relay = Relay {
                source,
                stream,
                observer: Arc::clone(observer),
                taskbar,
                ended: Arc::clone(&ended),
            };
            spawn(move || relay.run())
        };
        let relays = outputs.into_iter().map(relay).collect();
        let script = descriptor.map(|reader| {
            let (observer, ended) = (Arc::clone(observer), Arc::clone(&ended));
            spawn(move || script::follow(&reader, &observer, &ended))
        });
        let watcher = Watcher {
            file,
            process: process.id(),
            observer: Arc::clone(observer),
            ended: Arc::clone(&ended),
        };
        let watcher = spawn(move || watcher.run());
        let interrupted = Arc::default();
        let mut running = Running {
            process,
            signals,
            relays,
            screen,
            raw: None,
            keyboard: None,
            script,
            watcher,
            own_memory_bytes,
            interrupted,
            continuations: Arc::default(),
            alive,
        };
        if let Some((pseudo, raw)) = terminal {
            let raw = Arc::new(raw);
            running.screen = Some(pseudo.try_clone()?);
            running.raw = Some(Arc::clone(&raw));
            let keyboard = Keyboard {
                pseudo,
                raw,
                process: running.process.clone(),
                interrupted: Arc::clone(&running.interrupted),
                continuations: Arc::clone(&running.continuations),
                ended,
            };
            running.keyboard = Some(spawn(move || keyboard.run()));
        }
        Ok(running)
    }

    /// Waits until the command has ended and its output has been passed on. Returns how it ended.
    pub(super) fn wait(mut self, board: &Board) -> Ended {
        let mut by_signal = None;
        let status = loop {
            if let Some(status) = self.process.ended() {
                break status;
            }
            for event in self.signals.wait() {
                match event {
                    Event::Child => {}
                    Event::Resized | Event::Continued => {
                        if matches!(event, Event::Continued) {
                            self.continuations.add();
                        }
                        if let Some(screen) = &self.screen {
                            tty::resize(screen);
                            if self.raw.is_none() {
                                // The pseudo-terminal does not control the command, so the kernel does not
                                // signal it.
                                self.process.signal(Signal::WINCH);
                            }
                        }
                    }
                    Event::ForCommand {
                        signal,
                        is_from_terminal,
                    } => {
                        // The terminal sends its signals to all processes in its foreground.
                        if !is_from_terminal || self.process.leads_group() {
                            self.process.signal(signal);
                        }
                        if signals::ends(signal) {
                            by_signal =
                                Some(format!("Ended by {}", outcome::name(signal.as_raw())));
                        }
                    }
                }
            }
        };
        drop(self.alive);
        if let Some(keyboard) = self.keyboard {
            let _ = keyboard.join();
        }
        for relay in self.relays {
            // Do not wait for an output that other processes keep open.
            if let Ok(Some(open)) = relay.join() {
                hand_over(open);
            }
        }
        if let Some(script) = self.script {
            let _ = script.join();
        }
        let memory_bytes = self.watcher.join().ok().flatten();
        let was_interrupted = *self
            .interrupted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let by_keys = || {
            let interrupts = [Signal::INT.as_raw(), Signal::QUIT.as_raw()];
            let signal = status
                .signal()
                .or(status.code().map(|code| code - outcome::SIGNALLED));
            let is_interrupt = signal.is_some_and(|signal| interrupts.contains(&signal));
            (is_interrupt || was_interrupted && !status.success()).then(|| "Interrupted".to_owned())
        };
        let cancelled = board.cancelled().or(by_signal).or_else(by_keys);
        Ended {
            status,
            cancelled,
            own_memory_bytes: self.own_memory_bytes,
            memory_bytes,
        }
    }
}

/// Lets another process relay the output of processes that the command has left behind.
fn hand_over(output: OwnedFd) {
    // If that process cannot be started, their output is closed.
    let _ = Command::new("cat")
        .stdin(output)
        .stderr(Stdio::null())
        .spawn();
}
