//! The transitions of a row, raced against each other in every order that can happen (loom explores them all), on exactly
//! the code of `row.rs`. What must hold: a request runs at most once, a recalled one never, a drained row ends CLOSED,
//! and nobody can touch the next tenant of a row.
//!
//! Models with `must_fail` in their name run the same race over a wrong transition and have to find the fault: they prove
//! that the models can see.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use mod_wsgi_scoreboard::row::{self, RowState, RowWord, Word};

/// A word as `row.rs` uses it. Every access is a read-modify-write, also a load: such an access always meets the latest
/// value, so loom explores the interleavings, which is what the language promises for SeqCst accesses alone (loom itself
/// takes SeqCst for AcqRel). It must be so for another reason too: loom remembers only the last access of a word when it
/// looks for orders to try, and a plain load in between makes it overlook some.
struct Cell(AtomicU64);

impl Word for Cell {
    fn load(&self) -> u64 {
        self.0.fetch_or(0, Ordering::SeqCst)
    }
    fn swap_if(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Cell {
    fn new(state: RowState, client: u32) -> Arc<Cell> {
        Arc::new(Cell(AtomicU64::new(RowWord { generation: 7, state, client }.pack())))
    }
    fn store(&self, w: u64) {
        self.0.swap(w, Ordering::SeqCst);
    }
    fn state(&self) -> RowState {
        row::read(self).state
    }
}

/// A FREE row and the lease of client 1 on it.
fn sent() -> (Arc<Cell>, RowWord) {
    let w = Cell::new(RowState::Free, 0);
    let lease = row::take(&*w, 1).unwrap();
    (w, lease)
}

fn running() -> (Arc<Cell>, RowWord) {
    let (w, lease) = sent();
    assert!(row::claim(&*w, lease));
    (w, lease)
}

/// Starts `f` on the row in a thread of its own.
fn spawn<W: 'static, T: 'static>(w: &Arc<W>, f: impl FnOnce(&W) -> T + 'static) -> thread::JoinHandle<T> {
    let w = w.clone();
    thread::spawn(move || f(&w))
}

fn count(outcomes: &[bool]) -> usize {
    outcomes.iter().filter(|b| **b).count()
}

// --- take ------------------------------------------------------------------------------------------------------------

#[test]
fn of_two_takes_one_wins() {
    loom::model(|| {
        let w = Cell::new(RowState::Free, 0);
        let other = spawn(&w, |w| row::take(w, 2));
        let mine = row::take(&*w, 1);
        let other = other.join().unwrap();
        assert_eq!(count(&[mine.is_some(), other.is_some()]), 1);
        assert_eq!(Some(row::read(&*w)), mine.or(other));
    });
}

#[test]
fn take_or_close_wins_never_both() {
    loom::model(|| {
        let w = Cell::new(RowState::Free, 0);
        let supervisor = spawn(&w, row::close);
        let lease = row::take(&*w, 1);
        let closed = supervisor.join().unwrap();
        assert_eq!(count(&[lease.is_some(), closed]), 1);
        assert_eq!(w.state(), if closed { RowState::Closed } else { RowState::Sent });
    });
}

#[test]
fn take_or_bury_wins_and_the_row_of_a_dead_worker_is_closed_at_last() {
    loom::model(|| {
        let w = Cell::new(RowState::Free, 0);
        // The client had read READY before the worker died; nobody answers, it recalls.
        let client = spawn(&w, |w| row::take(w, 1).map(|l| row::recall(w, l)));
        let buried = row::bury(&*w);
        let recalled = client.join().unwrap();
        assert_ne!(recalled, Some(false), "nobody but the client ends a SENT row of a living client");
        assert!(buried || recalled.is_some(), "bury waits for nobody but a client");
        assert!(row::bury(&*w));
        assert!(row::take(&*w, 2).is_none());
    });
}

/// That loom really tries every order: the outcomes of one race are those counted by hand.
#[test]
fn every_order_is_tried() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let all = seen.clone();
    loom::model(move || {
        let w = Cell::new(RowState::Free, 0);
        let client = spawn(&w, |w| row::take(w, 1).map(|l| row::recall(w, l)));
        let buried = row::bury(&*w);
        all.lock().unwrap().insert((buried, client.join().unwrap()));
    });
    let all: Vec<_> = seen.lock().unwrap().iter().copied().collect();
    // Buried in the middle, before, and after.
    assert_eq!(all, [(false, Some(true)), (true, None), (true, Some(true))]);
}

// --- claim -----------------------------------------------------------------------------------------------------------

type Claim = fn(&Cell, RowWord) -> bool;

/// `claim` against `recall`, after which the same client sends again over the same row: both frames reach the worker.
fn claim_against_recall(claim: Claim) {
    loom::model(move || {
        let (w, first) = sent();
        let worker = spawn(&w, move |w| claim(w, first));
        let recalled = row::recall(&*w, first);
        let second = if recalled { row::take(&*w, 1) } else { None };
        let ran_first = worker.join().unwrap();
        let ran_second = second.is_some_and(|l| claim(&w, l));
        assert!(!(recalled && ran_first), "a recalled request has run");
        assert_eq!(count(&[ran_first, ran_second]), 1, "runs of one request");
    });
}

#[test]
fn claim_or_recall_wins_never_both() {
    claim_against_recall(row::claim);
}

/// Claims whatever is SENT, without looking at the generation.
fn claim_any_generation(w: &Cell, _: RowWord) -> bool {
    let now = row::read(w);
    now.state == RowState::Sent && row::claim(w, now)
}

#[test]
#[should_panic(expected = "a recalled request has run")]
fn must_fail_claim_without_the_generation() {
    claim_against_recall(claim_any_generation);
}

/// Looks, then writes: no compare-and-swap.
fn claim_in_two_steps(w: &Cell, sent: RowWord) -> bool {
    let ours = row::read(w) == sent;
    if ours {
        w.store(RowWord { state: RowState::Running, ..sent }.pack());
    }
    ours
}

#[test]
#[should_panic(expected = "a recalled request has run")]
fn must_fail_claim_in_two_steps() {
    claim_against_recall(claim_in_two_steps);
}

/// The same frame arrives at two threads of a worker (it cannot, but the row does not rely on that).
#[test]
fn of_two_claims_one_wins() {
    loom::model(|| {
        let (w, lease) = sent();
        let other = spawn(&w, move |w| row::claim(w, lease));
        let mine = row::claim(&*w, lease);
        assert_eq!(count(&[mine, other.join().unwrap()]), 1);
    });
}

#[test]
fn claim_recall_and_release_of_a_departed_client_exclude_each_other() {
    loom::model(|| {
        let (w, lease) = sent();
        let worker = spawn(&w, move |w| row::claim(w, lease));
        let supervisor = spawn(&w, |w| row::release_departed(w, |c| c == 1));
        let recalled = row::recall(&*w, lease);
        let outcomes = [recalled, worker.join().unwrap(), supervisor.join().unwrap()];
        assert_eq!(count(&outcomes), 1, "{outcomes:?}");
        assert_eq!(w.state(), if outcomes[1] { RowState::Running } else { RowState::Free });
    });
}

/// The supervisor releases rows of client 1, which has gone; client 2 takes the row: it must keep it.
#[test]
fn release_of_a_departed_client_spares_the_next_tenant() {
    loom::model(|| {
        let (w, lease) = sent();
        let worker = spawn(&w, move |w| row::claim(w, lease) && row::finish(w, lease));
        let next = spawn(&w, |w| row::take(w, 2));
        let released = row::release_departed(&*w, |c| c == 1);
        let ran = worker.join().unwrap();
        assert_eq!(count(&[released, ran]), 1);
        if let Some(next) = next.join().unwrap() {
            assert_eq!(row::read(&*w), next);
        }
    });
}

/// The number of a departed client is given again, and its new holder takes the very row; the old frame still lies in the
/// worker's socket.
#[test]
fn a_number_given_again_does_not_revive_the_old_request() {
    loom::model(|| {
        let (w, old) = sent();
        let worker = spawn(&w, move |w| row::claim(w, old));
        let released = row::release_departed(&*w, |c| c == 1);
        let next = if released { row::take(&*w, 1) } else { None };
        assert_eq!(count(&[released, worker.join().unwrap()]), 1);
        if let Some(next) = next {
            assert_eq!(row::read(&*w), next);
            assert!(!row::recall(&*w, old) && row::recall(&*w, next));
        }
    });
}

/// Two workers, the first of them drains meanwhile; the client moves its request when it can take it back.
#[test]
fn a_request_that_moves_to_another_worker_runs_once() {
    loom::model(|| {
        let (a, first) = sent();
        let b = Cell::new(RowState::Free, 0);
        let worker = spawn(&a, move |w| row::claim(w, first));
        let supervisor = spawn(&a, row::close);
        let second = if row::recall(&*a, first) { row::take(&*b, 1) } else { None };
        let ran_a = worker.join().unwrap();
        let ran_b = second.is_some_and(|l| row::claim(&*b, l));
        assert_eq!(count(&[ran_a, ran_b]), 1);
        let closed = supervisor.join().unwrap();
        assert!(!(closed && ran_a), "a running row has been closed");
    });
}

// --- finish ----------------------------------------------------------------------------------------------------------

#[test]
fn of_finish_release_dead_and_bury_one_ends_the_request() {
    loom::model(|| {
        let (w, lease) = running();
        let worker = spawn(&w, move |w| row::finish(w, lease));
        let client = spawn(&w, move |w| row::release_dead(w, lease));
        let buried = row::bury(&*w);
        let ended = [worker.join().unwrap(), client.join().unwrap()];
        assert!(count(&ended) <= 1);
        assert!(buried || count(&ended) == 1, "bury fails only because another has ended it");
        assert!(row::bury(&*w) && w.state() == RowState::Closed);
        assert!(!row::finish(&*w, lease) && !row::release_dead(&*w, lease));
    });
}

#[test]
fn finish_and_recall_never_both() {
    loom::model(|| {
        let (w, lease) = sent();
        let worker = spawn(&w, move |w| row::claim(w, lease) && row::finish(w, lease));
        let recalled = row::recall(&*w, lease);
        assert_eq!(count(&[recalled, worker.join().unwrap()]), 1);
        assert_eq!(row::read(&*w), RowWord { generation: 8, state: RowState::Free, client: 0 });
    });
}

// --- draining --------------------------------------------------------------------------------------------------------

const READY: u64 = 2;
const DRAINING: u64 = 3;
const EMPTY: u64 = 0;

/// A row and its slot's state.
struct Slot<W> {
    state: W,
    row: W,
}

type Free = fn(&Slot<Cell>, RowWord) -> bool;

/// As `Table::finish`: frees the row, then looks at the slot.
fn finish_then_look(s: &Slot<Cell>, lease: RowWord) -> bool {
    let done = row::finish(&s.row, lease);
    if done && s.state.load() == DRAINING {
        row::close_freed(&s.row, lease);
    }
    done
}

/// As `Table::recall`.
fn recall_then_look(s: &Slot<Cell>, lease: RowWord) -> bool {
    let done = row::recall(&s.row, lease);
    if done && s.state.load() == DRAINING {
        row::close_freed(&s.row, lease);
    }
    done
}

fn slot(row: RowWord) -> Arc<Slot<Cell>> {
    Arc::new(Slot { state: Cell(AtomicU64::new(READY)), row: Cell(AtomicU64::new(row.pack())) })
}

const SENT: RowWord = RowWord { generation: 7, state: RowState::Sent, client: 1 };
const RUNNING: RowWord = RowWord { state: RowState::Running, ..SENT };

/// As the supervisor: state first, then one sweep.
fn drain(s: &Slot<Cell>) -> bool {
    s.state.store(DRAINING);
    row::close(&s.row)
}

/// One sweep is enough: a row that is freed at any moment of it ends CLOSED.
fn drain_against(free: Free, start: RowWord, sweep: fn(&Slot<Cell>) -> bool) {
    loom::model(move || {
        let s = slot(start);
        let holder = spawn(&s, move |s| free(s, SENT));
        sweep(&s);
        assert!(holder.join().unwrap());
        assert_eq!(s.row.state(), RowState::Closed, "a drained row is open");
    });
}

#[test]
fn a_row_finished_while_draining_ends_closed() {
    drain_against(finish_then_look, RUNNING, drain);
}

#[test]
fn a_row_recalled_while_draining_ends_closed() {
    drain_against(recall_then_look, SENT, drain);
}

#[test]
#[should_panic(expected = "a drained row is open")]
fn must_fail_the_worker_looks_before_it_frees() {
    fn look_then_finish(s: &Slot<Cell>, lease: RowWord) -> bool {
        let draining = s.state.load() == DRAINING;
        let done = row::finish(&s.row, lease);
        if draining {
            row::close_freed(&s.row, lease);
        }
        done
    }
    drain_against(look_then_finish, RUNNING, drain);
}

#[test]
#[should_panic(expected = "a drained row is open")]
fn must_fail_the_supervisor_sweeps_before_it_says_so() {
    fn sweep_then_say(s: &Slot<Cell>) -> bool {
        let closed = row::close(&s.row);
        s.state.store(DRAINING);
        closed
    }
    drain_against(finish_then_look, RUNNING, sweep_then_say);
}

/// Acquire and release are not enough for state-then-sweep against free-then-look.
#[test]
#[should_panic(expected = "a drained row is open")]
fn must_fail_drain_without_sequential_consistency() {
    struct Weak(AtomicU64);
    impl Word for Weak {
        fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }
        fn swap_if(&self, from: u64, to: u64) -> bool {
            self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }
    }
    loom::model(|| {
        let s = Arc::new(Slot { state: Weak(AtomicU64::new(READY)), row: Weak(AtomicU64::new(RUNNING.pack())) });
        let worker = spawn(&s, |s| {
            row::finish(&s.row, SENT);
            if s.state.load() == DRAINING {
                row::close_freed(&s.row, SENT);
            }
        });
        s.state.0.store(DRAINING, Ordering::Release);
        row::close(&s.row);
        worker.join().unwrap();
        assert_eq!(row::read(&s.row).state, RowState::Closed, "a drained row is open");
    });
}

/// A client that still saw READY takes the row in the middle; the worker serves it and the row ends CLOSED all the same.
#[test]
fn a_row_taken_while_draining_is_served_and_closed() {
    loom::model(|| {
        let s = slot(RowWord { generation: 7, state: RowState::Free, client: 0 });
        let client = spawn(&s, |s| {
            if s.state.load() != READY {
                return;
            }
            if let Some(lease) = row::take(&s.row, 1) {
                assert!(row::claim(&s.row, lease) && finish_then_look(s, lease));
            }
        });
        drain(&s);
        client.join().unwrap();
        assert_eq!(s.row.state(), RowState::Closed);
    });
}

/// Somebody has freed a row and seen DRAINING, and is held up before closing it, until the slot serves again.
fn late_close(free: Free) {
    loom::model(move || {
        let s = slot(SENT);
        let client = spawn(&s, move |s| free(s, SENT));
        let drained = drain(&s) || s.row.state() == RowState::Closed;
        if drained {
            s.state.store(EMPTY);
            assert!(row::reopen(&s.row));
            s.state.store(READY);
        }
        assert!(client.join().unwrap());
        let want = if drained { RowState::Free } else { RowState::Closed };
        assert_eq!(s.row.state(), want, "a row is lost or left open");
    });
}

#[test]
fn a_late_close_spares_the_row_of_the_next_worker() {
    late_close(recall_then_look);
}

#[test]
#[should_panic(expected = "a row is lost or left open")]
fn must_fail_a_late_close_of_any_free_row() {
    late_close(|s, lease| {
        let done = row::recall(&s.row, lease);
        if done && s.state.load() == DRAINING {
            row::close(&s.row);
        }
        done
    });
}

// --- generations -----------------------------------------------------------------------------------------------------

/// Everything an old holder may still try, against the next tenant of the row.
#[test]
fn an_old_holder_cannot_touch_the_next_tenant() {
    loom::model(|| {
        let (w, old) = sent();
        let worker = spawn(&w, move |w| row::claim(w, old) && row::finish(w, old));
        let next = spawn(&w, |w| row::take(w, 1));
        let recalled = row::recall(&*w, old);
        let again = row::recall(&*w, old);
        assert!(!(recalled && again));
        let ran = worker.join().unwrap();
        assert_eq!(count(&[recalled, ran]), 1);
        if let Some(next) = next.join().unwrap() {
            assert_ne!(next.generation, old.generation);
            assert_eq!(row::read(&*w), next, "same client, other request");
        }
    });
}

/// The worker is dead, its row buried and opened for its successor, and taken; old worker and old client come late.
fn reopened_against(late: fn(&Cell, RowWord) -> bool) {
    loom::model(move || {
        let (w, old) = running();
        let former = spawn(&w, move |w| late(w, old));
        let buried = row::bury(&*w);
        let next = if buried && row::reopen(&*w) { row::take(&*w, 1) } else { None };
        let acted = former.join().unwrap();
        match next {
            Some(next) => {
                // Before the burial it may act, and that shows in the generation.
                assert_eq!(next.generation, old.generation + 2 + acted as u32);
                assert_eq!(row::read(&*w), next, "the former holder has acted on the next tenant");
                assert!(row::claim(&*w, next) && row::finish(&*w, next));
            }
            None => assert!(acted && !buried),
        }
    });
}

#[test]
fn a_reopened_row_is_safe_from_a_late_finish() {
    reopened_against(row::finish);
}

#[test]
fn a_reopened_row_is_safe_from_a_late_release() {
    reopened_against(row::release_dead);
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn must_fail_a_late_finish_of_any_generation() {
    reopened_against(|w, old| {
        let now = row::read(w);
        let freed = RowWord { generation: now.generation + 1, state: RowState::Free, client: 0 };
        now.client == old.client && w.swap_if(now.pack(), freed.pack())
    });
}

/// A client taken for gone is only slow: its row was released, closed and opened again for another worker.
#[test]
fn a_client_thought_gone_can_neither_recall_nor_have_its_request_run() {
    loom::model(|| {
        let (w, old) = sent();
        let client = spawn(&w, move |w| row::recall(w, old));
        let worker = spawn(&w, move |w| row::claim(w, old));
        let released = row::release_departed(&*w, |c| c == 1);
        let next = if released && row::bury(&*w) && row::reopen(&*w) { row::take(&*w, 2) } else { None };
        let outcomes = [released, client.join().unwrap(), worker.join().unwrap()];
        assert_eq!(count(&outcomes), 1, "{outcomes:?}");
        if let Some(next) = next {
            assert_eq!(row::read(&*w), next);
        }
    });
}
