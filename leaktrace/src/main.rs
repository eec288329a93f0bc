use clap::Parser;

#[derive(Parser)]
enum Command {
    Go(leaktrace::cli::go::GoArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Go(args) => args.run(),
    }
}
