//! The reactor's rules, one test or more for each, named after what it forbids.
//!
//! | rule | tests |
//! | --- | --- |
//! | 1 drain or remember | `reading::*` |
//! | 2 budgets | `fairness::*`, `accepting::more_than_one_budget_of_waiting_clients_is_accepted` |
//! | 3 identity | `identity::*`; `reactor::id::tests` |
//! | 4 frees in one place | `sweep::*` |
//! | 5 one Poll per socket at a time | `accepting::the_acceptor_never_registers_a_client`, `moving::*` |
//! | 6 mailboxes | `letters::*`; `reactor::mailbox::tests` |
//! | 7 one write per turn | `writing::*`; `reactor::outbox::tests` |
//! | 8 bounds | `bounds::*`, `recalling::*`, `accepting::an_accepted_socket_has_the_listeners_options`; `reactor::budget::tests` |
//! | 9 accept | `accepting::*`, `process::a_full_descriptor_table_*` |
//! | 10 half-close | `closing::*` |
//! | 11 never block | `letters::posting_to_a_busy_reactor_*`, `letters::a_full_mailbox_*` |
//! | 12 order through the pool | `pool::tests::a_lanes_jobs_keep_their_order_over_many_workers` |
//! | 13 lazy timers | `timers::*`; `reactor::timers::tests` |
//! | 14 a dead thread ends the process | the tests of the binary `chat-server` |
//! | 15 SIGPIPE | `process::sigpipe_*`, `process::writing_to_*` |
//! | a connection moves whole | `moving::*` |
//! | clients first, then letters | `turns::*` |
//! | nothing is handled or written while the handler may not act | `acting::*` |
//!
//! The reactors are real, with a [`toy::Toy`] for a handler: a letter is a closure that runs in the
//! reactor's thread, so a test can hold a reactor still until everything that it wants in one turn
//! has arrived.

#[path = "../support/mod.rs"]
mod support;

mod accepting;
mod acting;
mod bounds;
mod closing;
mod fairness;
mod identity;
mod letters;
mod moving;
mod probe;
mod process;
mod reading;
mod recalling;
mod sweep;
mod timers;
mod toy;
mod turns;
mod writing;
