"""The verbs: each module is imported when its verb is run.

summary    fields of a sandbox that several verbs show
report     the report of a reconcile
listing    list
inspect    inspect
history    history
reconcile  reconcile
check      check
metrics    metrics
delete     delete
backup     backup
restore    restore
salvage    salvage
importing  import
export     export
"""
