"""The desk: a simulated Sawyer arm with a drawer, a lever and a faucet, and six things to do there.

`client.sims.desk.spec` says what the tasks are and needs no simulator; every other module of this
package needs the extra `sim`.
"""
