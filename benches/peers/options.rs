//! What the command line asks for.

use anyhow::bail;

pub(crate) const HELP: &str = "\
usage: cargo bench --bench peers -- [--quick] [--scaling] [--plots] [WORD]...

  WORD        run only the measures whose names hold one of the words: throughput, latency,
              echo, map, crash, start, speedup, queue-memory, idle-memory, scaling; with the feature `remote`
              also remote
  --quick     little work and few rounds: to try it out, not to quote from
  --scaling   also measure how costs grow with workers, queue and payload
  --plots     draw what was measured into docs/, as SVG
  --help      print this text";

/// What is to be run, and how.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) plots: bool,
    scaling: bool,
    words: Vec<String>,
}

impl Options {
    /// The options on the command line, or `None` if it asks for help.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Options>> {
        let mut options = Options::default();
        for argument in arguments {
            match &*argument {
                // What `cargo bench` passes to every benchmark.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--plots" => options.plots = true,
                "--scaling" => options.scaling = true,
                "--help" | "-h" => return Ok(None),
                flag if flag.starts_with('-') => bail!("unknown flag `{flag}`; `--help` lists them"),
                _ => options.words.push(argument),
            }
        }
        Ok(Some(options))
    }

    /// Whether a measure of that name is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let is_named = self.words.is_empty() || self.words.iter().any(|word| name.contains(&**word));
        is_named && (self.scaling || name != "scaling")
    }
}
