"""The one controller of a fleet: broker, database, REST and page around the pure `fleet`, `rollout`, `distribute`.

Read `controller` first; `views` holds what the REST interface says.
"""
