"""Push-T: a round finger pushes a T-shaped block onto an outline on a table.

`client.sims.pusht.spec` says what the tasks are and needs no simulator; every other module of this
package needs the extra `sim`.
"""
