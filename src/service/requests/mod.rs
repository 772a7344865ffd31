//! What a client can ask for: a file for each, with what becomes of the answers that it waits for.

mod add_friend;
mod chat;
mod create_group;
mod group_chat;
mod join_group;
mod list;
mod login;
mod logout;
mod ping;
mod register;

use super::Asks;
use super::shard::{Call, Shard};
use crate::wire::{Refusal, msgid};

/// Carries a request out, or says why not.
type RequestHandler = fn(&mut Shard, &Call<'_>) -> Result<(), Refusal>;

/// The handlers by msgid, as in the original: the network side knows none of them by name.
pub(super) const HANDLERS: &[(i64, Asks, RequestHandler)] = &[
    (msgid::ONE_CHAT, Asks::Chat, Shard::one_chat),
    (msgid::GROUP_CHAT, Asks::GroupChat, Shard::group_chat),
    (msgid::LOGIN, Asks::Login, Shard::login),
    (msgid::LOGOUT, Asks::Logout, Shard::logout),
    (msgid::REGISTER, Asks::Register, Shard::register),
    (msgid::ADD_FRIEND, Asks::AddFriend, Shard::add_friend),
    (msgid::CREATE_GROUP, Asks::CreateGroup, Shard::create_group),
    (msgid::JOIN_GROUP, Asks::JoinGroup, Shard::join_group),
    (msgid::LIST, Asks::List, Shard::list),
    (msgid::PING, Asks::Ping, Shard::ping),
    (msgid::PONG, Asks::Pong, Shard::pong),
];
