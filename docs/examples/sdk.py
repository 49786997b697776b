"""The Couchbase SDK against ``twistd kvtls``, with certificate verification on.

Start the service with a user, then run this::

    twistd -n kvtls --user alice:secret
    python docs/examples/sdk.py 11207 kvtls-state/development/ca.pem
"""

from __future__ import annotations

import sys
from datetime import timedelta

import couchbase.subdocument as SD
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.exceptions import CasMismatchException, DocumentNotFoundException
from couchbase.options import ClusterOptions, ReplaceOptions, UpsertOptions

port, ca = sys.argv[1:]
cluster = Cluster(
    f"couchbases://127.0.0.1:{port}",
    ClusterOptions(PasswordAuthenticator("alice", "secret", cert_path=ca)),
)
documents = cluster.bucket("default").default_collection()

stored = documents.upsert("hotel", {"name": "Adlon", "rooms": 382})
print("stored", documents.get("hotel").content_as[dict])

documents.mutate_in("hotel", [SD.increment("rooms", 3), SD.upsert("stars", 5)])
print("rooms", documents.lookup_in("hotel", [SD.get("rooms")]).content_as[int](0))

try:
    documents.replace("hotel", {}, ReplaceOptions(cas=stored.cas))
except CasMismatchException:
    print("somebody else has changed it")

documents.upsert("session", {"user": 7}, UpsertOptions(expiry=timedelta(hours=1)))
documents.remove("session")
try:
    documents.get("session")
except DocumentNotFoundException:
    print("no session")

cluster.close()
