//! The `tidings` command. Everything is in the library, where it can be tested.

fn main() -> std::process::ExitCode {
    tidings::cli::run()
}
