//! The registration of a server's processes, in every order that can happen: processes come, register, are answered, end;
//! the supervisor crashes at any point, also between its word to the keeper and its answer, and the next one knows only
//! what the keeper knows. The model runs `Numbers` itself, with few numbers and small blocks, and visits every state.
//!
//! What must hold: no two living processes have, or are about to get, the same number, since the rows of the shared table
//! are theirs by it; a process that registers again keeps its number, or the rows of its requests would be taken for those of
//! one that has gone.
//!
//! Taken as given: what was written to the keeper's socket arrives, and after a supervisor's start all numbers are not
//! gone through before the processes that live have registered again (there are 16 million).

use super::Numbers;
use std::collections::{BTreeMap, BTreeSet, HashSet};

const MOST: u32 = 4;
const PROCESSES: usize = 3;

/// What the model does in place of the real thing, to prove that it would be seen.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// The keeper is told nothing.
    Silent,
    /// A process that registers again gets a new number.
    NewNumber,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Process {
    alive: bool,
    /// 0: none.
    number: u32,
    /// Its connection to the supervisor that lives stands.
    connected: bool,
    /// An answer that has been sent.
    answer: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    processes: [Process; PROCESSES],
    /// What the keeper would give the next supervisor.
    kept: u32,
    /// The living supervisor: its numbers, and whose they are.
    supervisor: Option<(Numbers, BTreeMap<u32, usize>)>,
    /// Numbers begin anew: see above.
    again: bool,
}

impl State {
    /// Everything that can happen next.
    fn next(&self, block: u32, wrong: Wrong) -> Vec<State> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut State) -> bool| {
            let mut s = self.clone();
            if change(&mut s) {
                all.push(s);
            }
        };
        match &self.supervisor {
            None => add(&|s| {
                s.supervisor = Some((Numbers::within(s.kept, MOST, block), BTreeMap::new()));
                true
            }),
            // after a wrap all that live are registered, and the next supervisor is another model's matter
            Some(_) => add(&|s| {
                s.supervisor = None;
                s.processes.iter_mut().for_each(|p| p.connected = false);
                !s.again
            }),
        }
        for i in 0..PROCESSES {
            add(&|s| s.start(i));
            add(&|s| s.end(i));
            add(&|s| s.register(i, wrong));
            add(&|s| s.hear(i));
            add(&|s| s.lose(i));
            add(&|s| s.notice(i));
        }
        all
    }

    fn start(&mut self, i: usize) -> bool {
        let known = self.supervisor.as_ref().is_some_and(|(_, c)| c.values().any(|p| *p == i));
        let free = !self.processes[i].alive && !known;
        self.processes[i] = Process { alive: true, ..Process::default() };
        free
    }

    fn end(&mut self, i: usize) -> bool {
        let lived = self.processes[i].alive;
        self.processes[i] = Process::default();
        lived
    }

    /// The supervisor reads that a process has ended.
    fn notice(&mut self, i: usize) -> bool {
        let Some((_, clients)) = &mut self.supervisor else { return false };
        let before = clients.len();
        let p = &self.processes[i];
        clients.retain(|_, who| *who != i || (p.alive && p.connected));
        clients.len() != before
    }

    /// The supervisor's turn for one registration, as connections.rs has it.
    fn register(&mut self, i: usize, wrong: Wrong) -> bool {
        let p = &self.processes[i];
        let all_there = self.processes.iter().all(|p| p.connected || (p.number == 0 && p.answer.is_none()));
        let Some((numbers, clients)) = &mut self.supervisor else { return false };
        if !p.alive || p.connected {
            return false;
        }
        let had = Some(p.number).filter(|n| *n != 0);
        let back = had.filter(|n| numbers.was_given(*n) && !clients.contains_key(n) && wrong != Wrong::NewNumber);
        let n = match back {
            Some(n) => n,
            None => {
                let before = numbers.clone();
                let (n, tell) = numbers.give(|n| clients.contains_key(&n));
                if n < before.next {
                    self.again = true;
                    if !all_there {
                        return false;
                    }
                }
                let tell = match wrong {
                    Wrong::Silent => false,
                    _ => tell,
                };
                if tell {
                    self.kept = numbers.promised;
                }
                n
            }
        };
        clients.insert(n, i);
        self.processes[i].connected = true;
        self.processes[i].answer = Some(n);
        true
    }

    /// A process reads its answer, also that of a supervisor that has crashed meanwhile.
    fn hear(&mut self, i: usize) -> bool {
        let Some(n) = self.processes[i].answer.take() else { return false };
        self.processes[i].number = n;
        true
    }

    /// The answer of a crashed supervisor does not arrive.
    fn lose(&mut self, i: usize) -> bool {
        !self.processes[i].connected && self.processes[i].answer.take().is_some()
    }

    fn check(&self, former: &State) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for (i, p) in self.processes.iter().enumerate().filter(|(_, p)| p.alive) {
            let numbers: BTreeSet<u32> = p.answer.into_iter().chain([p.number]).filter(|n| *n != 0).collect();
            for n in numbers {
                if let Some(other) = seen.insert(n, i) {
                    return Err(format!("{other} and {i} have number {n}"));
                }
            }
            let had = former.processes[i].number;
            if had != 0 && p.number != 0 && p.number != had {
                return Err(format!("{i} had number {had} and has {}", p.number));
            }
        }
        Ok(())
    }
}

/// Visits every state; the number of them, or what is wrong with one and how it came about.
fn explore(block: u32, wrong: Wrong) -> Result<usize, String> {
    let first = State { processes: Default::default(), kept: 1, supervisor: None, again: false };
    let mut seen = HashSet::from([first.clone()]);
    let mut todo = vec![first];
    while let Some(state) = todo.pop() {
        for next in state.next(block, wrong) {
            next.check(&state).map_err(|e| format!("{e}:\n{state:?}\n{next:?}"))?;
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_number_is_two_processes_and_none_changes() {
    for block in [1, 2] {
        let states = explore(block, Wrong::Nothing).unwrap();
        assert!(states > 1000, "the model hardly moves: {states}");
    }
}

#[test]
fn must_fail_without_a_word_to_the_keeper() {
    explore(2, Wrong::Silent).unwrap_err();
}

#[test]
fn must_fail_with_a_new_number_each_time() {
    assert!(explore(2, Wrong::NewNumber).unwrap_err().contains("had number"));
}
