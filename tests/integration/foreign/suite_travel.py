"""A test module as applications of Couchbase have it: nothing in it knows of kvproto.

It expects a cluster at ``couchbase://``, as a container gives it, and makes what it needs there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.diagnostics import ServiceType
from couchbase.exceptions import (
    BucketAlreadyExistsException,
    CollectionAlreadyExistsException,
    CouchbaseException,
    DocumentNotFoundException,
    QueryIndexAlreadyExistsException,
    ScopeAlreadyExistsException,
)
from couchbase.management.buckets import BucketType, CreateBucketSettings
from couchbase.options import ClusterOptions, QueryOptions, WaitUntilReadyOptions

BUCKET = "travel-test"
SCOPE = "inventory"
COLLECTION = "hotels"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    login = PasswordAuthenticator(
        os.environ.get("COUCHBASE_USERNAME", "Administrator"),
        os.environ.get("COUCHBASE_PASSWORD", "password"),
    )
    address = os.environ.get("COUCHBASE_URL", "couchbase://localhost")
    cluster = Cluster(address, ClusterOptions(login))
    services = [ServiceType.KeyValue, ServiceType.Query, ServiceType.Management]
    cluster.wait_until_ready(timedelta(seconds=30), WaitUntilReadyOptions(service_types=services))
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def bucket(cluster: Any) -> Any:
    settings = CreateBucketSettings(
        name=BUCKET,
        bucket_type=BucketType.COUCHBASE,
        ram_quota_mb=128,
        num_replicas=0,
        flush_enabled=True,
    )
    try:
        cluster.buckets().create_bucket(settings)
    except BucketAlreadyExistsException:
        pass
    deadline = time.monotonic() + 30
    while True:
        try:
            bucket = cluster.bucket(BUCKET)
            bucket.default_collection().exists("warm-up")
            break
        except CouchbaseException:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    manager = bucket.collections()
    try:
        manager.create_scope(SCOPE)
    except ScopeAlreadyExistsException:
        pass
    try:
        manager.create_collection(SCOPE, COLLECTION)
    except CollectionAlreadyExistsException:
        pass
    try:
        cluster.query(f"CREATE PRIMARY INDEX ON `{BUCKET}`.`{SCOPE}`.`{COLLECTION}`").execute()
    except QueryIndexAlreadyExistsException:
        pass
    return bucket


@pytest.fixture
def hotels(cluster: Any, bucket: Any) -> Iterator[Any]:
    yield bucket.scope(SCOPE).collection(COLLECTION)
    cluster.buckets().flush_bucket(BUCKET)


def test_stores_a_hotel(hotels: Any) -> None:
    hotels.upsert("adlon", {"name": "Adlon", "rooms": 382})
    assert hotels.get("adlon").content_as[dict]["rooms"] == 382


def test_begins_empty(hotels: Any) -> None:
    with pytest.raises(DocumentNotFoundException):
        hotels.get("adlon")


def test_deletes_everything(cluster: Any, hotels: Any) -> None:
    hotels.upsert("adlon", {"name": "Adlon"})
    cluster.query(
        f"DELETE FROM `{COLLECTION}`",
        QueryOptions(query_context=f"default:`{BUCKET}`.`{SCOPE}`"),
    ).execute()
    assert not hotels.exists("adlon").exists


def test_queries_are_served(cluster: Any) -> None:
    assert list(cluster.query("SELECT RAW 1;").rows()) == [1]


def test_lists_what_there_is(cluster: Any, bucket: Any) -> None:
    assert BUCKET in [found.name for found in cluster.buckets().get_all_buckets()]
    scopes = {scope.name: scope for scope in bucket.collections().get_all_scopes()}
    assert [found.name for found in scopes[SCOPE].collections] == [COLLECTION]
