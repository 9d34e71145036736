//! A real table under load: clients, workers and a supervisor race for about two seconds. Every request of a living
//! client runs exactly once, one of a departed client at most once, and no row is lost at the end.

use mod_wsgi_scoreboard::{ClientId, Lease, RowState, Shape, SlotState, Table};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

const SLOTS: u16 = 2;
const CLIENTS: u32 = 3;
const RUN: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(60);
/// More requests than one machine makes in that time.
const IDS: usize = 4_000_000;

/// Numbers without a pattern, for choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

struct World {
    /// Two mappings of one table, as two processes have them.
    near: Table,
    far: Table,
    /// What a worker's sockets hold.
    frames: [Mutex<VecDeque<(usize, Lease)>>; SLOTS as usize],
    /// Times each request has run, and whether it has ended.
    runs: Vec<AtomicU32>,
    next_id: AtomicU64,
    next_client: AtomicU32,
    departed: RwLock<HashSet<ClientId>>,
    abandoned: Mutex<HashSet<usize>>,
    clients_left: AtomicU32,
    stop_workers: AtomicBool,
    recalls: AtomicU64,
    lost_recalls: AtomicU64,
    dropped: AtomicU64,
    drains: AtomicU64,
}

fn client(w: &World, seed: u64) {
    let mut dice = Dice(seed);
    let mut number = w.next_client.fetch_add(1, SeqCst);
    let (start, mut slot) = (Instant::now(), 0u16);
    while start.elapsed() < RUN {
        let id = w.next_id.fetch_add(1, SeqCst) as usize;
        if id >= IDS {
            break;
        }
        loop {
            assert!(start.elapsed() < DEADLINE, "request {id} gets no row or no answer");
            slot = (slot + 1) % SLOTS;
            let Some(lease) = w.near.take(slot, dice.roll(8) as u16, number) else {
                std::thread::yield_now();
                continue;
            };
            w.frames[slot as usize].lock().unwrap().push_back((id, lease));
            for _ in 0..dice.roll(60) {
                std::hint::spin_loop();
            }
            if dice.roll(2) == 0 {
                std::thread::yield_now();
            }
            match dice.roll(40) {
                0 => {
                    // This process ends: the supervisor takes its rows, another takes its place.
                    w.abandoned.lock().unwrap().insert(id);
                    w.departed.write().unwrap().insert(number);
                    number = w.next_client.fetch_add(1, SeqCst);
                    break;
                }
                1..16 => {
                    if w.near.recall(&lease) {
                        w.recalls.fetch_add(1, SeqCst);
                        continue;
                    }
                    w.lost_recalls.fetch_add(1, SeqCst);
                }
                _ => {}
            }
            while w.runs[id].load(SeqCst) == 0 {
                assert!(start.elapsed() < DEADLINE, "request {id} is not answered");
                std::thread::yield_now();
            }
            break;
        }
    }
    w.clients_left.fetch_sub(1, SeqCst);
}

fn worker(w: &World, slot: u16) {
    loop {
        let frame = w.frames[slot as usize].lock().unwrap().pop_front();
        match frame {
            Some((id, lease)) => {
                if w.far.claim(&lease) {
                    w.runs[id].fetch_add(1, SeqCst);
                    assert!(w.far.finish(&lease), "nobody else ends a running request");
                } else {
                    w.dropped.fetch_add(1, SeqCst);
                }
            }
            None if w.stop_workers.load(SeqCst) => return,
            None => std::thread::yield_now(),
        }
    }
}

/// Sweeps a draining slot until every row is CLOSED.
fn drain(w: &World, slot: u16, generation: u32) {
    w.near.set_slot(slot, generation, SlotState::Draining);
    let start = Instant::now();
    loop {
        w.near.release_departed(slot, |c| w.departed.read().unwrap().contains(&c));
        if w.near.drain_rows(slot) == 0 {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "slot {slot} does not drain");
        std::thread::yield_now();
    }
}

fn supervisor(w: &World) {
    let mut slot = 0;
    let start = Instant::now();
    // A client that has failed is not counted down.
    while w.clients_left.load(SeqCst) != 0 && start.elapsed() < DEADLINE {
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_millis(5) {
            for s in 0..SLOTS {
                w.near.release_departed(s, |c| w.departed.read().unwrap().contains(&c));
            }
            std::thread::yield_now();
        }
        slot = (slot + 1) % SLOTS;
        drain(w, slot, w.near.slot(slot).0);
        w.near.set_slot(slot, w.near.slot(slot).0, SlotState::Empty);
        let generation = w.near.begin_slot(slot);
        w.near.open_rows(slot, generation);
        w.drains.fetch_add(1, SeqCst);
    }
}

/// Ends the workers when it goes.
struct StopWorkers<'a>(&'a World);

impl Drop for StopWorkers<'_> {
    fn drop(&mut self) {
        self.0.stop_workers.store(true, SeqCst);
    }
}

#[test]
fn requests_run_exactly_once() {
    let shape = Shape { slots: SLOTS, threads: 2, rows: 5 };
    let (near, fd) = Table::create(shape).unwrap();
    let far = Table::open(&fd, shape).unwrap();
    for s in 0..SLOTS {
        let generation = near.begin_slot(s);
        near.open_rows(s, generation);
    }
    let w = World {
        near,
        far,
        frames: Default::default(),
        runs: (0..IDS).map(|_| AtomicU32::new(0)).collect(),
        next_id: AtomicU64::new(0),
        next_client: AtomicU32::new(1),
        departed: Default::default(),
        abandoned: Default::default(),
        clients_left: AtomicU32::new(CLIENTS),
        stop_workers: AtomicBool::new(false),
        recalls: AtomicU64::new(0),
        lost_recalls: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        drains: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        // Also when the supervisor fails: the scope waits for the workers.
        let _stop = StopWorkers(&w);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                scope.spawn({
                    let w = &w;
                    move || client(w, 0x9e37_79b9 + i as u64)
                })
            })
            .collect();
        let workers: Vec<_> = (0..SLOTS * 2)
            .map(|i| {
                scope.spawn({
                    let w = &w;
                    move || worker(w, i % SLOTS)
                })
            })
            .collect();
        supervisor(&w);
        // Whatever fails, nobody is waited for without end.
        let failed: Vec<_> = clients.into_iter().filter_map(|c| c.join().err()).collect();
        w.stop_workers.store(true, SeqCst);
        workers.into_iter().for_each(|t| t.join().unwrap());
        assert!(failed.is_empty());
    });

    let made = (w.next_id.load(SeqCst) as usize).min(IDS);
    let abandoned = w.abandoned.lock().unwrap();
    for id in 0..made {
        let runs = w.runs[id].load(SeqCst);
        assert!(runs == 1 || runs == 0 && abandoned.contains(&id), "request {id} ran {runs} times");
    }
    for s in 0..SLOTS {
        w.near.release_departed(s, |_| true);
        for r in 0..shape.rows {
            assert_eq!(w.near.row_at(s, r).state, RowState::Free, "row {r} of slot {s} is lost");
        }
    }
    let seen = [
        made as u64,
        w.recalls.load(SeqCst),
        w.lost_recalls.load(SeqCst),
        w.dropped.load(SeqCst),
        w.drains.load(SeqCst),
    ];
    println!(
        "requests, recalls, recalls that came late, frames dropped, drains, departures: {seen:?} {}",
        abandoned.len()
    );
    assert!(seen.iter().all(|n| *n > 0) && !abandoned.is_empty(), "a race that was not run: {seen:?}");
}

/// A row is never taken for a worker that has gone: whoever is slow between looking at a slot and taking its row finds out.
#[test]
fn a_row_is_taken_of_the_worker_that_is_there() {
    let shape = Shape { slots: 1, threads: 2, rows: 4 };
    let (table, _fd) = Table::create(shape).unwrap();
    let generation = table.begin_slot(0);
    table.open_rows(0, generation);
    let (table, stop) = (&table, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (1..4u32)
            .map(|number| {
                scope.spawn(move || {
                    let (mut taken, mut wrong) = (0u32, 0u32);
                    while !stop.load(SeqCst) {
                        if let Some(lease) = table.take(0, number as u16, number) {
                            taken += 1;
                            // It cannot change any more: a slot that drains waits for its rows.
                            wrong += u32::from(table.slot(0).0 != lease.slot_generation);
                            table.recall(&lease);
                        }
                    }
                    (taken, wrong)
                })
            })
            .collect();
        let start = Instant::now();
        let mut workers = 0;
        while start.elapsed() < Duration::from_secs(1) {
            table.set_slot(0, table.slot(0).0, SlotState::Draining);
            while table.drain_rows(0) != 0 {
                std::hint::spin_loop();
            }
            table.set_slot(0, table.slot(0).0, SlotState::Empty);
            let generation = table.begin_slot(0);
            table.open_rows(0, generation);
            workers += 1;
        }
        stop.store(true, SeqCst);
        let (taken, wrong) =
            clients.into_iter().map(|c| c.join().unwrap()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert!(workers > 100 && taken > 100, "a race that was not run: {workers} workers, {taken} rows");
        assert_eq!(wrong, 0, "of {taken} rows and {workers} workers");
    });
}
