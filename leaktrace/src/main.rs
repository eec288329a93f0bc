//! The `leaktrace` program; everything is in the library.

fn main() -> std::process::ExitCode {
    leaktrace::cli::main()
}
