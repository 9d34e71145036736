//! The answer to `mod-wsgi-rs ctl status`, as JSON. No secrets and no environment values.

use crate::master::Leaving;
use crate::pool::Pool;
use crate::recycle::Vitals;
use crate::supervise::Supervisor;
use crate::worker::Worker;
use mod_wsgi_scoreboard::Entry;
use mod_wsgi_scoreboard::layout::header;
use serde_json::{Value, json};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Everything the supervisor knows about servers, pools and workers.
pub fn status(s: &Supervisor, now: Instant) -> Value {
    let masters: Vec<Value> = s
        .masters
        .values()
        .map(|m| {
            let clients = s.clients.values().filter(|c| c.master == m.id).count();
            let state = match m.leaving {
                None => "serving",
                Some(Leaving::Stop) => "stopping",
                Some(Leaving::Gone { .. }) => "gone",
            };
            json!({
                "pid": m.watched.process.pid, "generation": m.generation, "state": state, "clients": clients,
                "server_uid": m.config.server_uid,
            })
        })
        .collect();
    let pools: Vec<Value> = s.pools.values().map(|p| pool(p, now)).collect();
    json!({ "pid": std::process::id(), "keeper": s.cx.keeper.is_some(), "masters": masters, "pools": pools })
}

fn pool(p: &Pool, now: Instant) -> Value {
    let shape = p.table.shape();
    let mut workers: Vec<Value> = p.workers.values().map(|w| worker(p, w, now)).collect();
    workers.extend(p.foreign.iter().map(|(slot, f)| {
        let (sent, running) = p.table.count_rows(*slot);
        let vitals = Vitals::of(f.process.pid);
        json!({
            "slot": slot, "generation": f.generation, "pid": f.process.pid, "state": f.state_name(), "former": true,
            "requests": p.table.requests(*slot), "sent": sent, "running": running,
            "rss": vitals.map(|v| v.rss), "cpu": vitals.map(|v| v.cpu.as_secs_f64()), "under_way": under_way(f.entries()),
        })
    }));
    json!({
        "id": p.id, "scaled": p.scaled, "away": p.away, "refusal": if p.blocked { p.refusal.as_str() } else { "" },
        "queue_full": p.table.counter(header::QUEUE_FULL), "recalls": p.table.counter(header::RECALLS),
        "queue_timeouts": p.table.counter(header::QUEUE_TIMEOUTS), "starts": p.starts, "failing": p.failing,
        "group": p.group.name, "application": p.application, "master": p.master.pid, "state": p.state_name(),
        "slots": shape.slots, "threads": shape.threads, "rows": shape.rows,
        "target": p.target, "epoch": p.epoch, "failures": p.backoff.failures(), "last_exit": p.last_exit,
        "blocked": p.blocked, "burying": p.burying.len(), "workers": workers,
    })
}

fn worker(p: &Pool, w: &Worker, now: Instant) -> Value {
    let (sent, running) = p.table.count_rows(w.slot);
    let vitals = Vitals::of(w.process.pid);
    json!({
        "slot": w.slot, "generation": w.generation, "pid": w.process.pid, "state": w.state.name(), "former": false,
        "epoch": w.epoch, "age": now.duration_since(w.started).as_secs_f64(), "python": w.python,
        "requests": p.table.requests(w.slot), "sent": sent, "running": running,
        "load_set": w.load_set.len(), "loaded": w.loaded.len(), "due": w.life.due, "stuck": w.stuck.len(),
        "rss": vitals.map(|v| v.rss), "cpu": vitals.map(|v| v.cpu.as_secs_f64()), "under_way": under_way(w.journal.entries()),
    })
}

fn under_way(entries: Vec<Entry>) -> Vec<Value> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let one = |e: Entry| {
        let seconds = clock.saturating_sub(e.started) as f64 / 1e6;
        json!({ "line": String::from_utf8_lossy(&e.line), "phase": e.phase.name(), "seconds": seconds })
    };
    entries.into_iter().map(one).collect()
}
