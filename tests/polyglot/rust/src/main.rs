//! A worker and a client of Postbus in Rust, with types generated from the published contracts.
//!
//!     program serve AMQP_URL                 serves GetPost of the service of the account, until it is killed
//!     program call AMQP_URL GATEWAY_URL ID   calls by REST, Connect and AMQP; prints the results as JSON
//!
//! Types of prost have no official Connect client: a unary call is a POST of the binary request.
mod bus;
mod worker;

use std::collections::HashSet;
use std::env;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use prost_types::Timestamp;
use serde_json::{Value, json};

use bus::{Bus, Fault, failure};
use contracts::postbus::bus::v1::{CheckResponse, Code, Error};
use contracts::postbus::posts::v1::{Author, GetPostRequest, GetPostResponse, Post};
use contracts::postbus::users::v1::{BatchGetUsersRequest, BatchGetUsersResponse, UserRegistered};
use worker::{Handler, consume, serve};

#[allow(dead_code, clippy::all)] // generated, and used in part
mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}

const UNKNOWN: &str = "00000000-0000-7000-8000-000000000000";
const BUDGET: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = env::args().collect();
    let bus = Bus::open(&arguments[2]).await?;
    if arguments[1] == "serve" {
        run(bus).await
    } else {
        call(&bus, &arguments[3], &arguments[4]).await
    }
}

/// Serves one post for each user that has registered; its author's name comes from `users`.
async fn run(bus: Arc<Bus>) -> Result<(), Fault> {
    let authors: Arc<Mutex<HashSet<String>>> = Arc::default();
    let known = authors.clone();
    consume(&bus, "postbus.users.v1.UserRegistered", move |event| {
        let registered = UserRegistered::decode(&*event.data)?;
        known.lock().expect("no panic with the lock").insert(registered.user_id); // once
        Ok(())
    })
    .await?;
    let caller = bus.clone();
    let get: Handler = Arc::new(move |body, deadline| {
        Box::pin(get_post(caller.clone(), authors.clone(), body, deadline))
    });
    let check: Handler = Arc::new(|_, _| Box::pin(async { Ok(check()) }));
    let health = format!("postbus.bus.v1.HealthService.Check.{}", bus.service);
    let handlers = vec![("postbus.posts.v1.PostsService.GetPost".to_owned(), get), (health, check)];
    serve(bus, handlers).await?;
    println!("READY");
    std::future::pending().await
}

async fn get_post(
    bus: Arc<Bus>,
    authors: Arc<Mutex<HashSet<String>>>,
    body: Vec<u8>,
    deadline: Instant,
) -> Result<Vec<u8>, Error> {
    let Ok(GetPostRequest { id, .. }) = GetPostRequest::decode(&*body) else {
        return Err(failure(Code::InvalidArgument, "MALFORMED_MESSAGE", "Malformed."));
    };
    if !authors.lock().expect("no panic with the lock").contains(&id) {
        return Err(failure(Code::NotFound, "POST_NOT_FOUND", "There is no such post."));
    }
    let username = username_of(&bus, &id, deadline).await?;
    let author = Some(Author { id: id.clone(), username, ..Default::default() });
    let post = Post { id, title: "From Rust".into(), author, version: 1, ..Default::default() };
    Ok(GetPostResponse { post: Some(post) }.encode_to_vec())
}

fn check() -> Vec<u8> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let time = Some(Timestamp { seconds: now.as_secs() as i64, nanos: 0 });
    CheckResponse { time, ..Default::default() }.encode_to_vec()
}

async fn username_of(bus: &Bus, id: &str, deadline: Instant) -> Result<String, Error> {
    let mut found = users_of(bus, "BatchGetUsers", id, deadline).await?;
    Ok(found.profiles.swap_remove(0).username)
}

async fn users_of(
    bus: &Bus,
    name: &str,
    id: &str,
    deadline: Instant,
) -> Result<BatchGetUsersResponse, Error> {
    let method = format!("postbus.users.v1.UsersService.{name}");
    bus.call(&method, &BatchGetUsersRequest { ids: vec![id.into()] }, deadline).await
}

async fn call(bus: &Bus, gateway: &str, id: &str) -> Result<(), Fault> {
    let rest: Value =
        ureq::get(format!("{gateway}/v1/posts/{id}")).call()?.body_mut().read_json()?;
    let body = connect(gateway, id)?;
    let found = GetPostResponse::decode(&*body)?.post.unwrap_or_default();
    let missing: Value = serde_json::from_slice(&connect(gateway, UNKNOWN)?)?;
    let deadline = Instant::now() + BUDGET;
    let username = username_of(bus, id, deadline).await.map_err(|error| error.reason)?;
    let invalid = username_of(bus, "not a UUID", deadline).await.err().unwrap_or_default();
    let unserved = users_of(bus, "Unserved", id, deadline).await.err().unwrap_or_default();
    let results = json!({
        "rest": [rest["title"], rest["author"]["username"]],
        "connect": [found.title, found.author.unwrap_or_default().username],
        "missing": missing["code"],
        "amqp": username,
        "invalid": invalid.reason,
        "unserved": unserved.reason,
    });
    println!("{results}");
    Ok(())
}

/// Calls GetPost; returns the encoded response, or the error as JSON.
fn connect(gateway: &str, id: &str) -> Result<Vec<u8>, Fault> {
    let request = GetPostRequest { id: id.into(), ..Default::default() };
    let mut response = ureq::post(format!("{gateway}/postbus.posts.v1.PostsService/GetPost"))
        .config()
        .http_status_as_error(false)
        .build()
        .header("Content-Type", "application/proto")
        .header("Connect-Protocol-Version", "1")
        .send(request.encode_to_vec())?;
    Ok(response.body_mut().read_to_vec()?)
}
