//! Python's pools, in a Python that measures them when asked.

use super::contest::Figures;
use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PROGRAM: &str = include_str!("pools.py");

/// Which of Python's pools.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Executor,
    Pool,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Executor => "Python ProcessPoolExecutor",
            Kind::Pool => "Python multiprocessing.Pool",
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Kind::Executor => "executor",
            Kind::Pool => "pool",
        }
    }
}

/// A Python with a pool; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Python {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Python {
    pub(crate) fn start(kind: Kind, workers: usize) -> anyhow::Result<Python> {
        let mut process = Command::new("python3")
            .args(["-c", PROGRAM, kind.argument(), &workers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = process.stdin.take();
        let answers = process.stdout.take().context("python3 has no output")?;
        Ok(Python { process, questions, answers: BufReader::new(answers) })
    }

    /// Has it measure something, and returns its figures.
    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<Figures> {
        let questions = self.questions.as_mut().context("python3 has no input")?;
        writeln!(questions, "{question}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "python3 has ended");
        answer.split_whitespace().map(|figure| Ok(figure.parse()?)).collect()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.questions = None;
        let _ = self.process.wait();
    }
}
