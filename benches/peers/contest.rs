//! Contestants that take turns, round by round, and what came of it.

use super::noise::Noise;

/// What a contestant's round yields: one figure for each metric of the contest.
pub(crate) type Figures = Vec<f64>;

type Round<'a> = Box<dyn FnMut() -> anyhow::Result<Figures> + 'a>;

/// Something measured, in some unit.
#[derive(Clone, Debug)]
pub(crate) struct Metric {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
}

impl Metric {
    /// A metric of which more is better.
    pub(crate) fn more(title: impl Into<String>, unit: &'static str) -> Metric {
        Metric { title: title.into(), unit, more_is_better: true }
    }

    /// A metric of which less is better.
    pub(crate) fn less(title: impl Into<String>, unit: &'static str) -> Metric {
        Metric { title: title.into(), unit, more_is_better: false }
    }
}

/// Contestants in the order of their turns.
pub(crate) struct Contest<'a> {
    metrics: Vec<Metric>,
    entries: Vec<Entry<'a>>,
    is_series: bool,
}

struct Entry<'a> {
    name: String,
    round: Round<'a>,
    rounds: Vec<Figures>,
    failure: Option<String>,
}

impl<'a> Contest<'a> {
    pub(crate) fn new(metrics: impl Into<Vec<Metric>>) -> Contest<'a> {
        Contest { metrics: metrics.into(), entries: Vec::new(), is_series: false }
    }

    /// One whose entries are a series, so that ratios say nothing.
    pub(crate) fn series(metrics: impl Into<Vec<Metric>>) -> Contest<'a> {
        Contest { is_series: true, ..Contest::new(metrics) }
    }

    /// Adds a contestant. Ratios are those of the first one to the others.
    pub(crate) fn enter(
        &mut self,
        name: impl Into<String>,
        round: impl FnMut() -> anyhow::Result<Figures> + 'a,
    ) {
        let entry = Entry { name: name.into(), round: Box::new(round), rounds: Vec::new(), failure: None };
        self.entries.push(entry);
    }

    /// Has all take so many turns, after one that does not count; one table for each metric.
    pub(crate) fn run(mut self, rounds: usize) -> Vec<Outcome> {
        let noise = Noise::start();
        for _ in 0..=rounds {
            self.entries.iter_mut().for_each(Entry::take_turn);
        }
        let noise = noise.and_then(|noise| noise.processors());
        let outcome = |(index, metric): (usize, &Metric)| Outcome {
            metric: metric.clone(),
            rows: self.entries.iter().map(|entry| entry.row(index)).collect(),
            is_series: self.is_series,
            noise,
        };
        self.metrics.iter().enumerate().map(outcome).collect()
    }
}

impl Entry<'_> {
    /// One that has failed is out.
    fn take_turn(&mut self) {
        if self.failure.is_none() {
            match (self.round)() {
                Ok(figures) => self.rounds.push(figures),
                Err(error) => self.failure = Some(format!("{error:#}")),
            }
        }
    }

    fn row(&self, metric: usize) -> Row {
        let counted = self.rounds.iter().skip(1);
        Row {
            name: self.name.clone(),
            samples: counted.filter_map(|figures| figures.get(metric).copied()).collect(),
            failure: self.failure.clone(),
        }
    }
}

/// How a contest ended, by one of its metrics.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) metric: Metric,
    pub(crate) rows: Vec<Row>,
    /// How many processors other programs had meanwhile.
    pub(crate) noise: Option<f64>,
    is_series: bool,
}

/// How one contestant fared.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) samples: Vec<f64>,
    pub(crate) failure: Option<String>,
}

impl Outcome {
    /// How many times as good the first contestant was as this other one, by the median of the
    /// rounds.
    pub(crate) fn ratio(&self, row: usize) -> Option<f64> {
        if row == 0 || self.is_series {
            return None;
        }
        let (first, row) = (&self.rows.first()?.samples, self.rows.get(row)?);
        let ratios = first.iter().zip(&row.samples).map(|(first, other)| match self.metric.more_is_better {
            true => first / other,
            false => other / first,
        });
        median(&ratios.collect::<Vec<_>>()).filter(|ratio| ratio.is_finite())
    }
}

impl Row {
    pub(crate) fn median(&self) -> Option<f64> {
        median(&self.samples)
    }

    pub(crate) fn lowest(&self) -> Option<f64> {
        self.samples.iter().copied().reduce(f64::min)
    }

    pub(crate) fn highest(&self) -> Option<f64> {
        self.samples.iter().copied().reduce(f64::max)
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples.to_vec());
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

/// The value that so great a part of the samples do not exceed; 0 where there is none.
pub(crate) fn quantile(samples: Vec<f64>, part: f64) -> f64 {
    let sorted = sorted(samples);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}
