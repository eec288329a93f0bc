use clap::Parser;

mod go_offsets;

#[derive(Parser)]
enum Command {
    /// Update the table of Go runtime offsets.
    GoOffsets(go_offsets::GoOffsetsArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::GoOffsets(args) => go_offsets::run(&args),
    }
}
