"""The verbs: each module is imported when its verb is run.

summary      fields of a sandbox that several verbs show
transitions  transitions as rows, and their tables
report       the report of a reconcile
live         a list that goes on
listing      list
inspect      inspect
facts        data on one sandbox
steps        commands that may be run next on one sandbox
explanation  sentences on one sandbox
why          why
history      history
watch        watch
who          who
sql          sql
reconcile    reconcile
check        check
metrics      metrics
delete       delete
upgrade      upgrade
backup       backup
restore      restore
salvage      salvage
importing    import
export       export
demo         demo
completion   completion
fleet        fleet
"""
