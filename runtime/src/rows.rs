//! The rows of a generation: what each has said, and whether it goes on.

use crate::generate::{Completion, Finish, GenerateOptions, NewToken};
use frit_plan::Plan;
use std::ops::ControlFlow;

/// Rows in progress.
pub(crate) struct Rows {
    rows: Vec<Row>,
    ends: Vec<u32>,
    /// What a row of `most` tokens ends with.
    last: Option<u32>,
    most: usize,
}

#[derive(Clone, Default)]
struct Row {
    tokens: Vec<u32>,
    finish: Option<Finish>,
}

/// What became of chosen tokens.
pub(crate) struct Taken {
    /// How many went to rows that had not ended.
    pub tokens: u64,
    /// Whether there is a row to go on with.
    pub go_on: bool,
}

impl Rows {
    pub fn new(count: usize, plan: &Plan, options: &GenerateOptions) -> Rows {
        let eos = if options.ignore_eos { &[][..] } else { &plan.model.eos };
        let ends = eos.iter().chain(&options.stop).copied().collect();
        let last = plan.model.rules.last.first().copied().filter(|_| !options.ignore_eos);
        Rows { rows: vec![Row::default(); count], ends, last, most: options.max_new_tokens }
    }
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Tokens that some row still wants.
    pub fn left(&self) -> u64 {
        let going = self.rows.iter().filter(|r| r.finish.is_none());
        going.map(|r| self.most.saturating_sub(r.tokens.len()) as u64).max().unwrap_or(0)
    }
    /// Which rows go on.
    pub fn going(&self) -> Vec<bool> {
        self.rows.iter().map(|r| r.finish.is_none()).collect()
    }
    /// Gives each row that goes on its token, or the one that it has to end with, and the caller too.
    pub fn take(&mut self, next: &[i32], on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>) -> Taken {
        let mut tokens = 0;
        for (row, (r, t)) in self.rows.iter_mut().zip(next).enumerate() {
            if r.finish.is_some() {
                continue;
            }
            let id = self.last.filter(|_| r.tokens.len() + 1 >= self.most).unwrap_or(*t as u32);
            r.tokens.push(id);
            tokens += 1;
            if self.ends.contains(&id) {
                r.finish = Some(Finish::Stop);
            } else if r.tokens.len() >= self.most {
                r.finish = Some(Finish::Length);
            }
            if on_token(NewToken { row, id }).is_break() {
                self.end(Finish::Cancelled);
                return Taken { tokens, go_on: false };
            }
        }
        Taken { tokens, go_on: self.rows.iter().any(|r| r.finish.is_none()) }
    }
    /// Ends all rows that go on.
    pub fn end(&mut self, why: Finish) {
        for r in self.rows.iter_mut().filter(|r| r.finish.is_none()) {
            r.finish = Some(why);
        }
    }
    pub fn completions(self) -> Vec<Completion> {
        let done = |r: Row| Completion { tokens: r.tokens, finish: r.finish.unwrap_or(Finish::Length) };
        self.rows.into_iter().map(done).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model;

    #[test]
    fn a_row_of_full_length_ends_with_the_token_that_it_has_to_end_with() {
        let mut plan = test_model::decoder(32, &[4]);
        plan.model.rules.last = vec![7, 9];
        let said = |ignore_eos: bool| {
            let options = GenerateOptions { max_new_tokens: 3, ignore_eos, ..GenerateOptions::default() };
            let mut rows = Rows::new(2, &plan, &options);
            for next in [[1, 2], [3, 4], [5, 6]] {
                rows.take(&next, &mut |_| ControlFlow::Continue(()));
            }
            rows.completions().into_iter().map(|r| r.tokens).collect::<Vec<_>>()
        };
        assert_eq!(said(false), [vec![1, 3, 7], vec![2, 4]]);
        assert_eq!(said(true), [[1, 3, 5], [2, 4, 6]]);
    }
}
