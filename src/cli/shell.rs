//! `tidings completions` and `tidings man`: what shells and `man` know of the command line, from the same definitions as its help.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::terminal::print_line;
use super::{Exit, Failure};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings completions bash > ~/.local/share/bash-completion/completions/tidings
  tidings completions zsh > \"${fpath[1]}/_tidings\"
  tidings completions fish > ~/.config/fish/completions/tidings.fish
  eval (tidings completions elvish | slurp)                            (in ~/.config/elvish/rc.elv)
  tidings completions powershell | Out-String | Invoke-Expression      (in $PROFILE)")]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write one page for each command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings man | man -l -
  tidings man --dir ~/.local/share/man/man1")]
pub(super) struct Manual {
    /// Write the pages of all commands into this folder, which is created if needed.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Prints the script that completes this command line.
pub(super) fn complete(arguments: &Completions, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(arguments.shell, &mut command, name, &mut script);
    print(&script)
}

/// Prints or writes the manual pages of this command line.
pub(super) fn describe(arguments: &Manual, command: Command) -> Result<(), Failure> {
    // With the `help` subcommand, there would be a page for the help of each command.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(folder) = &arguments.dir else {
        return print(&page(command)?);
    };
    let written = fs::create_dir_all(folder).and_then(|()| write(command, folder));
    written.map_err(|error| {
        let problem = format!("cannot write to {}: {error}", folder.display());
        Failure::new(Exit::Failed, problem)
    })
}

/// Writes the pages of a command and all of its subcommands.
fn write(command: Command, folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().cloned() {
        write(subcommand, folder)?;
    }
    let file = folder.join(Man::new(command.clone()).get_filename());
    fs::write(file, page(command)?)
}

/// Returns the page of a command.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let notes = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.after_help(None::<&'static str>));
    let mut page = Vec::new();
    man.render(&mut page)?;
    if let Some(notes) = notes {
        sections(&notes).to_writer(&mut page)?;
    }
    Ok(page)
}

/// Returns the text below the options as sections. Lines that are indented stay as they are.
fn sections(notes: &str) -> Roff {
    let mut sections = Roff::new();
    for paragraph in notes.split("\n\n") {
        let (heading, rest) = match paragraph.split_once(':') {
            Some(("Examples", rest)) => ("EXAMPLES", rest),
            Some(("Exit codes", rest)) => ("EXIT STATUS", rest),
            _ => ("NOTES", paragraph),
        };
        sections.control("SH", [heading]);
        let is_list = rest.starts_with('\n');
        if is_list {
            sections.control("nf", []);
        }
        for line in rest.trim().lines() {
            sections.text([roman(line.trim())]);
        }
        if is_list {
            sections.control("fi", []);
        }
    }
    sections
}

fn print(text: &[u8]) -> Result<(), Failure> {
    print_line(String::from_utf8_lossy(text).trim_end())
}
