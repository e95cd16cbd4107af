/*
 * queue.pml: sending, receiving, takeover, the alert word, evidence, eviction, purge, delay and filters.
 *
 * The processes follow the code of shm/ step by step: what stands in one atomic{} is one access to shared memory (a load, a store,
 * a CAS), or several of which the others can see only one.  Between two atomics anything may happen: another process runs, this one
 * is stopped for ever, fenced by a takeover, or killed.  Ghost variables (ms, ret, snap, elig) are not in the code; they say what has
 * happened, so that the assertions can judge it.
 *
 * Bounds and switches come from the command line (see check.sh); M_* are weakened rules, which must fail.
 */
#ifndef N
#define N 3                     /* slots */
#endif
#ifndef NA
#define NA 4                    /* index areas: holders that can be fenced at once + 1 */
#endif
#ifndef MAX
#define MAX 2                   /* capacity */
#endif
#ifndef M0
#define M0 2                    /* messages 1..M0 are sent by process 0 */
#endif
#ifndef M1
#define M1 1                    /* messages M0+1..M0+M1 are sent by process 1 */
#endif
#define M (M0+M1)
#ifndef NC
#define NC 2                    /* receivers: processes 2, 3, … */
#endif
#ifndef OPS
#define OPS 2                   /* receives of each */
#endif
#ifndef MAXTO
#define MAXTO 1                 /* takeovers from live holders, at any moment */
#endif
#ifndef DEATHS
#define DEATHS 0                /* deaths, of anybody at any step */
#endif
#ifndef PRIOS
#define PRIOS 100               /* priority of message m, two bits each: here 1, 2, 1 */
#endif
#ifndef TYPES
#define TYPES 0                 /* bit m: message m matches the filter */
#endif
#ifndef DELAYED
#define DELAYED 0               /* bit m: message m is delayed until the clock says so */
#endif
#ifndef ROLE2
#define ROLE2 RECV
#endif
#ifndef ROLE3
#define ROLE3 RECV
#endif
#ifndef ROLE4
#define ROLE4 RECV
#endif
#define RECV   0
#define FILTER 1                /* receives messages of TYPES only */
#define PURGE  2                /* frees everything up to head at its look (expiry collection: only those of TYPES) */
#define SEND   3
#define PR(m)   ((PRIOS>>(2*(m)))&3)
#define TY(m)   ((TYPES>>(m))&1)
#define DL(m)   ((DELAYED>>(m))&1)
#define TOPPRIO 3

/* A slot's state word: kind, tag or owner, seq. */
#define FREE 0
#define RES 1
#define RDY 2
#define TKN 3
#define W(k,t,s) ((k)|((t)<<2)|((s)<<5))
#define KIND(w) ((w)&3)
#define TAG(w)  (((w)>>2)&7)
#define SEQ(w)  (((w)>>5)&7)
/* The alert word cur = {epoch, alert, prio}. */
#define CUR(e,al,p) ((p)|((al)<<2)|((e)<<3))
#define CPRIO(c)  ((c)&3)
#define CALERT(c) (((c)>>2)&1)
#define CEPOCH(c) ((c)>>3)

typedef Area {
  byte node[N];                 /* expected word of the slot's message while it is in the index, else 0 */
  byte ev[N];                   /* evidence: the seq that was last inserted here; never cleared */
  byte pm;                      /* priorities of the nodes, two bits each */
  byte heap;                    /* bit i: node i waits in the heap of delayed messages */
  byte consumed
}
Area A[NA];
byte st[N], nxt[N], body[N];    /* slots: state word, link, message */
byte hseq, hslot;               /* head */
byte Lep, Lar, LD; bit Lheld;   /* lock: epoch, area, drained, held */
byte Lown;                      /* ghost: who holds it */
byte mk[2+NC];                  /* mark of each process: area + 1 */
byte cur = CUR(0,0,TOPPRIO);
#if DELAYED
byte due;                       /* the clock: bit m set when message m is due */
#define ELIG(m,d) (!DL(m) || (((d)>>(m))&1))
#else
#define due 0
#define ELIG(m,d) true
#endif
byte tos, started = 2;          /* takeovers used; receivers start in the order of their numbers (symmetry) */
byte ms[M+1];                   /* ghost: 0 not sent, 1 in the queue, 2 claimed, 3 received, 4 removed */
byte ret;                       /* ghost: bit m: the send of m has returned (only then must others respect it) */
byte fin;                       /* ghost: bit p: process p is done */
hidden byte x, y, qn, k2, tp, cne, Df;
#if DEATHS>0
byte dead, ndead;
#define LIVE (!(dead & (1<<me)))
#define ISDEAD(p) ((dead>>(p))&1)
#else
#define LIVE true
#define ISDEAD(p) false
#endif
/* FINE splits what is merged by default; the merged runs reach larger bounds. */
#ifdef FINE
#define SEP } atomic { LIVE
#else
#define SEP skip
#endif
#if NA==4
#define EV(i,q) (A[0].ev[i]==(q) || A[1].ev[i]==(q) || A[2].ev[i]==(q) || A[3].ev[i]==(q))
#elif NA==3
#define EV(i,q) (A[0].ev[i]==(q) || A[1].ev[i]==(q) || A[2].ev[i]==(q))
#else
#define EV(i,q) (A[0].ev[i]==(q) || A[1].ev[i]==(q))
#endif
#ifdef M_NOEVIDENCE
#define ADOPT(i,w) true
#else
#define ADOPT(i,w) (TAG(w)!=0 || EV(i,SEQ(w)))
#endif
#if NC>2
#define MK4 || mk[4]==b+1
#else
#define MK4
#endif
#define MARKED(b) (mk[0]==b+1 || mk[1]==b+1 || mk[2]==b+1 || mk[3]==b+1 MK4)
#define MINE (Lheld && Lep==ep && Lar==ar)
#define APR(i) ((A[ar].pm>>(2*(i)))&3)
#define LISTED(i) (!((A[ar].heap>>(i))&1))

inline count() { qn=0; y=1; do :: y>M -> break :: else -> qn=qn+(ms[y]==1); y++ od; y=0 }

/* The top of the index, by priority, then seq; tp = 255: none.  cond: which nodes count. */
inline findtop(cond) {
  tp=255; x=0;
  do :: x==N -> break
     :: else -> if
        :: A[ar].node[x]!=0 && (cond) && (tp==255 || APR(x)>APR(tp) || (APR(x)==APR(tp) && SEQ(A[ar].node[x])<SEQ(A[ar].node[tp]))) -> tp=x
        :: else fi; x++
  od; x=0 }

#define VPR(i) (LISTED(i) -> APR(i) : PR(body[i]))        /* of a delayed one it is read from the slot */
/* The victim: DropOldest the smallest seq of all, else the oldest of the lowest priority; heap included. */
inline findvictim() {
  tp=255; x=0;
  do :: x==N -> break
     :: else -> if
#ifdef DROPLOWEST
        :: A[ar].node[x]!=0 && (tp==255 || VPR(x)<VPR(tp) || (VPR(x)==VPR(tp) && SEQ(A[ar].node[x])<SEQ(A[ar].node[tp]))) -> tp=x
#else
        :: A[ar].node[x]!=0 && (tp==255 || SEQ(A[ar].node[x])<SEQ(A[ar].node[tp])) -> tp=x
#endif
        :: else fi; x++
  od; x=0 }

/* A node is written only after a verify, in an area that is marked: true evidence, even if this process is fenced by now. */
inline insert(sl,word) {
  assert(A[ar].node[sl]==0 || !MINE);
  A[ar].node[sl]=word;
  A[ar].ev[sl]=SEQ(word);
  A[ar].pm = (A[ar].pm & (255-(3<<(2*sl)))) | (PR(body[sl])<<(2*sl));
#if DELAYED
  if :: DL(body[sl]) && !((due>>body[sl])&1) -> A[ar].heap=A[ar].heap|(1<<sl) :: else -> A[ar].heap=A[ar].heap&(255-(1<<sl)) fi
#endif
}
inline clearlists() { A[ar].pm=0; A[ar].heap=0; x=0; do :: x<N -> A[ar].node[x]=0; x++ :: else -> break od; x=0 }
/* Due messages go from the heap to the list, at the place of their seq. */
inline movedue() {
#if DELAYED
  x=0; do :: x<N -> if :: ((A[ar].heap>>x)&1) && A[ar].node[x]!=0 && ((due>>body[x])&1) -> A[ar].heap=A[ar].heap&(255-(1<<x)) :: else fi; x++ :: else -> break od; x=0;
  elig=due
#else
  skip
#endif
}

proctype Member(byte me; byte role; byte first; byte last) {
  byte m, s, h;                 /* as a sender: message, its slot, seq of head as read */
  byte n, ep, ar, b, D;         /* as a holder: receives done, my lock word, area to take, drained */
  byte H, i, k, ins, w;
  byte snap;                    /* ghost: messages that this receive must respect */
#if DELAYED
  byte elig;                    /* ghost: due messages at its look at the clock */
#endif
  byte cs[N];                   /* seqs read and not yet inserted */
#ifdef M_CUREARLY
  byte ec;
#endif
  if :: role==SEND -> m=first :: else -> goto ACQ fi;

/* ---- Send ---- */
GET: atomic { LIVE;
       if :: st[0]==FREE -> s=0 :: st[0]!=FREE && st[1]==FREE -> s=1
#if N>2
       :: st[0]!=FREE && st[1]!=FREE && st[2]==FREE -> s=2
#endif
#if N>3
       :: st[0]!=FREE && st[1]!=FREE && st[2]!=FREE && st[3]==FREE -> s=3
#endif
       fi;
       st[s]=W(RES,me,0); body[s]=m; printf("P%d reserves slot %d for m%d\n",me,s,m) }
HEAD: atomic { LIVE; h=hseq; nxt[s]=hslot; printf("P%d reads head %d\n",me,h) }   /* the link is private until the commit */
     atomic { LIVE; b=Lar; SEP; if :: h+1 > MAX+A[b].consumed -> printf("P%d full\n",me); b=0; h=0; goto PUTBACK :: else -> b=0 fi }
     atomic { LIVE; st[s]=W(RDY,0,h+1);
#ifdef M_CUREARLY
       ec=cur;
#endif
     }
     atomic { LIVE; if :: hseq==h -> hseq=h+1; hslot=s;                            /* the commit */
                          assert(ms[m]==0); ms[m]=1; printf("P%d COMMIT m%d seq %d slot %d\n",me,m,h+1,s);
                          count(); assert(qn<=MAX); s=0; h=0; goto ALERT
                       :: else -> skip fi }
     atomic { LIVE; assert(st[s]==W(RDY,0,h+1)); st[s]=W(RES,me,0); h=0; goto HEAD }
ALERT:
#ifndef NOALERT
     /* load, decide, CAS, again on failure: the same as one step, for what decides is the value alone */
#ifdef M_CUREARLY
     atomic { LIVE; if :: CALERT(ec)==0 && PR(m)>CPRIO(ec) -> cur=cur|CUR(0,1,0) :: else fi; ec=0 }
#else
     atomic { LIVE; if :: CALERT(cur)==0 && PR(m)>CPRIO(cur) -> cur=cur|CUR(0,1,0); printf("P%d alerts for m%d\n",me,m) :: else -> printf("P%d: no alert for m%d\n",me,m) fi }
#endif
#endif
     atomic { LIVE; if :: ms[m]==1 -> ret=ret|(1<<m) :: else fi; m++;
              if :: m<=last -> goto GET :: else -> m=0; fin=fin|(1<<me); goto END fi }
PUTBACK: atomic { LIVE; assert(st[s]==W(RES,me,0)); st[s]=FREE; body[s]=0; s=0 }      /* nobody waits with a slot in hand */
#ifdef EVICT
     goto ACQ;
#else
     atomic { LIVE && hseq+1 <= MAX+A[Lar].consumed -> goto GET };
#endif

/* ---- Acquire, or take over ---- */
ACQ: atomic { LIVE && (role==SEND || started>=me || (me==3 && ISDEAD(2)) || (me==4 && ISDEAD(3) && (started>=3 || ISDEAD(2))));
       if
       :: !Lheld -> ep=Lep; ar=Lar; D=LD
       :: Lheld && (tos<MAXTO || ISDEAD(Lown)) -> ep=Lep; ar=Lar; D=LD; if :: role!=SEND && started<=me -> started=me+1 :: else fi; goto TAKE
       fi; if :: role!=SEND && started<=me -> started=me+1 :: else fi; SEP; mk[me]=ar+1; SEP;
       if :: !Lheld && Lep==ep && Lar==ar && LD==D -> Lheld=1; Lown=me; snap=ret; printf("C%d ACQUIRES epoch %d area %d\n",me,ep,ar); goto LOOK
          :: else -> ep=0; ar=0; D=0; mk[me]=0; goto ACQ fi }
TAKE: atomic { LIVE;
       b=0; do :: b==NA -> assert(false) :: b<NA && (b==ar || MARKED(b)) -> b++ :: else -> break od; mk[me]=b+1; SEP;
       if :: MINE && LD==D && (tos<MAXTO || ISDEAD(Lown)) -> if :: ISDEAD(Lown) :: else -> tos++ fi;
             ep++; Lep=ep; Lar=b; Lown=me; printf("C%d TAKES OVER epoch %d area %d drained %d\n",me,ep,b,D); ar=b; b=0; clearlists(); i=0; ins=0; snap=ret
          :: else -> ep=0; ar=0; b=0; D=0; mk[me]=0; goto ACQ fi }
#ifndef NOALERT
#if !defined(M_TAKELATE) && !defined(M_NOTAKE) && !defined(M_EPOCHLATE)
     atomic { LIVE; if :: CEPOCH(cur)>ep -> goto FENCED
#ifdef EPOCHONLY
                       :: else -> cur=CUR(ep,CALERT(cur),CPRIO(cur)) fi }
#else
                       :: else -> cur=CUR(ep,1,TOPPRIO); printf("C%d writes cur\n",me) fi }
#endif
#endif
#endif

/* ---- Rebuild: re-tag everything first; insert later, in the order of seq ---- */
SCAN: atomic { LIVE; w=st[i];
       if :: KIND(w)==RDY && SEQ(w)<=D && ADOPT(i,w)
          :: else -> w=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi fi; SEP;
       if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE;
       if :: st[i]==w ->
#ifndef M_NORETAG
             st[i]=W(RDY,ep+1,SEQ(w));
#endif
             printf("C%d scan: re-tags slot %d seq %d\n",me,i,SEQ(w)); assert(ms[body[i]]==1); cs[i]=SEQ(w); ins++; w=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
          :: else -> w=0; goto SCAN fi }
RHEAD: atomic { LIVE; H=hseq; k=hseq; i=hslot; printf("C%d rebuild reads head %d\n",me,H); if :: k>D -> goto WALK :: else -> goto RINS fi }
WALK: atomic { LIVE; w=st[i]; SEP; b=nxt[i]; SEP; if :: MINE -> assert(KIND(w)==RDY && SEQ(w)==k) :: else -> goto FENCED fi }
     atomic { LIVE;
       if :: st[i]==w -> st[i]=W(RDY,ep+1,k); printf("C%d walk: re-tags slot %d seq %d\n",me,i,k); cs[i]=k; ins++; w=0; i=b; b=0; k--; if :: k>D -> goto WALK :: else -> goto RINS fi
          :: else -> w=0; b=0; goto WALK fi }
RINS: atomic { LIVE; i=255; k=0; x=0; do :: x==N -> break :: else -> if :: cs[x]!=0 && (i==255 || cs[x]<cs[i]) -> i=x :: else fi; x++ od; x=0;
       if :: i==255 -> i=0; goto RDONE :: else -> insert(i,W(RDY,ep+1,cs[i])); cs[i]=0; i=0; goto RINS fi }
RDONE: atomic { LIVE; A[ar].consumed=H-ins; ins=0; SEP; if :: MINE && LD==D -> LD=H; D=H; printf("C%d rebuilt, drained %d\n",me,D) :: else -> goto FENCED fi; H=0
#if defined(M_TAKELATE) || defined(M_EPOCHLATE)
     }
     atomic { LIVE; if :: CEPOCH(cur)>ep -> goto FENCED
#ifdef M_EPOCHLATE
                       :: else -> cur=CUR(ep,CALERT(cur),CPRIO(cur)) fi
#else
                       :: else -> cur=CUR(ep,1,TOPPRIO) fi
#endif
#endif
     }

/* ---- Must this receive look at head? ---- */
LOOK: atomic { LIVE; movedue();
#ifdef NOALERT
#ifdef EVICT
       if :: role==SEND -> goto ISFULL :: else fi
#else
       skip
#endif
       }
#else
#ifdef EVICT
       if :: role==SEND -> goto ISFULL :: else fi;
#endif
       if :: role!=RECV -> goto DRAIN :: else fi;          /* filters, eviction, purge: always drain, leave cur alone */
       findtop(LISTED(x));
       if
#if defined(M_NOEPOCH) || defined(M_NOTAKE)
       :: tp!=255 && !CALERT(cur) && APR(tp)>=CPRIO(cur)
#else
       :: CEPOCH(cur)!=ep -> assert(CEPOCH(cur)>ep && !MINE); tp=0; goto FENCED
       :: CEPOCH(cur)==ep && tp!=255 && !CALERT(cur) && APR(tp)>=CPRIO(cur)
#endif
          -> printf("C%d: top %d, no look at head\n",me,APR(tp)); if :: MINE -> snap=ret :: else fi; tp=0; goto TOP
       :: else ->
          /* clear the alert and lower the priority (or lower it later, or not so far), in one CAS, BEFORE head is read */
          x=CPRIO(cur);
#ifndef M_LOWERAFTER
          do :: tp!=255 && x>APR(tp) -> x-- :: break od;
#endif
#ifdef M_CLEARAFTER
          cur=CUR(CEPOCH(cur),CALERT(cur),x);
#else
          cur=CUR(CEPOCH(cur),0,x);
#endif
          printf("C%d cur = {%d,0,%d}\n",me,CEPOCH(cur),x); x=0
       fi; tp=0 }
#endif
DRAIN: atomic { LIVE; H=hseq; k=hseq; i=hslot; printf("C%d reads head %d drained %d\n",me,H,D); snap=0; y=1;
        do :: y>M -> break :: else -> snap=snap|((ms[y]==1)<<y); y++ od; y=0;
#ifdef EVICT
        if :: role==SEND && MINE -> count(); assert(qn==MAX) :: else fi;            /* full at this very moment */
#endif
        if :: k>D -> goto LINKS :: else -> k=0; i=0; goto DRAINED fi }
LINKS: atomic { LIVE; cs[i]=k; i=nxt[i]; k--; if :: k>D -> goto LINKS :: else -> i=0; k=0 fi }
#ifndef M_NOVERIFY
     /* one verify after all the links are read: only now are they certain, and with them READY(0,k) */
     atomic { LIVE; if :: MINE -> x=0; do :: x==N -> break :: else -> assert(cs[x]==0 || st[x]==W(RDY,0,cs[x])); x++ od; x=0 :: else -> goto FENCED fi }
#endif
DINS: atomic { LIVE; i=255; x=0; do :: x==N -> break :: else -> if :: cs[x]!=0 && (i==255 || cs[x]<cs[i]) -> i=x :: else fi; x++ od; x=0;
       if :: i==255 -> i=0; goto PUB :: else -> insert(i,W(RDY,0,cs[i])); cs[i]=0; i=0; goto DINS fi }
PUB: atomic { LIVE; if :: MINE && LD==D -> LD=H; D=H :: else -> goto FENCED fi }     /* before any claim from it */
DRAINED: atomic { LIVE; H=0;
#ifndef NOALERT
       if :: role==RECV ->
#ifdef M_CLEARAFTER
         cur=cur&(255-CUR(0,1,0));
#endif
         findtop(LISTED(x));
#ifdef M_LOWERAFTER
         if :: tp!=255 && CPRIO(cur)>APR(tp) && CEPOCH(cur)==ep -> cur=CUR(CEPOCH(cur),CALERT(cur),APR(tp)) :: else fi;
#endif
         if :: tp!=255 && CPRIO(cur)<APR(tp) && CEPOCH(cur)==ep -> cur=CUR(ep,CALERT(cur),APR(tp)); printf("C%d raises cur to %d\n",me,APR(tp)) :: true fi;
         tp=0
       :: else fi
#endif
     }
#ifdef EVICT
     if :: role==SEND -> goto VICTIM :: else fi;
#endif

/* ---- Claim ---- */
TOP: atomic { LIVE;
       if :: role==RECV -> findtop(LISTED(x))
#if TYPES
          :: role==FILTER -> findtop(LISTED(x) && TY(body[x]))
          :: role==PURGE -> findtop(TY(body[x]))
#else
          :: role==PURGE -> findtop(true)
#endif
       fi;
       if
#if TYPES && !defined(M_NOVERIFYEMPTY)
       :: tp==255 && role==FILTER && !MINE -> goto FENCED    /* types were read from slots: only the verify makes "no match" certain */
       :: tp==255 && (role!=FILTER || MINE) -> printf("C%d empty\n",me);
#else
       :: tp==255 -> printf("C%d empty\n",me);
#endif
          y=1; do :: y>M -> break :: else -> assert(!((snap>>y)&1) || (role!=PURGE && !ELIG(y,elig)) || (role!=RECV && TYPES && !TY(y)) || (role==PURGE && ms[y]!=1)); y++ od;
          m=0; snap=0; tp=0; y=0; goto UNLOCK
       :: else ->
          if
          :: st[tp]==A[ar].node[tp] ->
             m=body[tp]; i=tp; printf("C%d CLAIMS slot %d m%d\n",me,tp,m);
             assert(ms[m]==1); assert(role==PURGE || ELIG(m,due));
             y=0; do :: y==N -> break
                     :: else -> if :: y!=tp && body[y]!=0 && KIND(st[y])==RDY && ms[body[y]]==1 && (role==PURGE || ELIG(body[y],elig)) && (role==RECV || !TYPES || TY(body[y])) && (((snap>>body[y])&1) || PR(body[y])==PR(m)) ->
                            assert(!(PR(body[y])>PR(m) || (PR(body[y])==PR(m) && SEQ(st[y])<SEQ(A[ar].node[tp])))) :: else fi; y++ od;
             ret=ret&(255-(1<<m));
             A[ar].node[tp]=0;
             if :: role==PURGE -> ms[m]=4; st[tp]=FREE; body[tp]=0; nxt[tp]=0; m=0; i=0 :: else -> ms[m]=2; st[tp]=W(TKN,me,0) fi
          :: else -> printf("C%d claim of slot %d fails\n",me,tp); goto FENCED      /* never "then the next node" */
          fi
       fi; if :: role!=PURGE -> snap=0 :: else fi; tp=0; y=0 }
     atomic { LIVE; A[ar].consumed=A[ar].consumed+1; if :: role==PURGE -> goto TOP :: else -> goto UNLOCK fi }

#ifdef EVICT
/* ---- Eviction by a sender that holds the lock: full still?  drain, choose, drop; again, until there is room ---- */
ISFULL:
#ifdef M_NORECHECK
     atomic { LIVE; if :: n==1 -> n=0; snap=0; goto UNLOCK :: else -> n=1; goto DRAIN fi }
#else
     atomic { LIVE; if :: hseq+1<=MAX+A[ar].consumed -> snap=0; goto UNLOCK :: else -> goto DRAIN fi }
#endif
VICTIM: atomic { LIVE; findvictim();
       if
#ifdef DROPLOWEST
       :: tp==255 || VPR(tp)>=PR(m) -> tp=0;
#ifndef M_NOVERIFYREFUSE
          if :: MINE :: else -> goto FENCED fi;                     /* priorities of delayed ones were read from slots */
#endif
          goto REFUSED
#else
       :: tp==255 -> tp=0; snap=0; goto UNLOCK
#endif
       :: else -> k=tp; tp=0 fi }
     atomic { LIVE;
       if :: st[k]==A[ar].node[k] -> tp=body[k]; printf("P%d EVICTS slot %d m%d\n",me,k,tp); assert(ms[tp]==1);
             y=1; do :: y>M -> break :: else -> if :: y!=tp && ms[y]==1 && ((snap>>y)&1) ->
                     x=0; do :: x==N -> break :: body[x]==y && KIND(st[x])==RDY -> break :: else -> x++ od; assert(x<N);
#ifdef DROPLOWEST
                     assert(!(PR(y)<PR(tp) || (PR(y)==PR(tp) && SEQ(st[x])<SEQ(st[k]))))
#else
                     assert(!(SEQ(st[x])<SEQ(st[k])))
#endif
                     :: else fi; y++ od;
             ret=ret&(255-(1<<tp)); ms[tp]=4; A[ar].node[k]=0;
#ifdef DIRECT
             st[k]=FREE; body[k]=0; nxt[k]=0
#else
             st[k]=W(TKN,me,0)
#endif
          :: else -> tp=0; goto FENCED fi; tp=0; y=0; x=0; snap=0 }
     atomic { LIVE; A[ar].consumed=A[ar].consumed+1;
#ifdef DIRECT
       k=0; goto ISFULL }
#else
       }
     atomic { LIVE; assert(st[k]==W(TKN,me,0)); st[k]=FREE; body[k]=0; nxt[k]=0; k=0; goto ISFULL }
#endif
#ifdef DROPLOWEST
REFUSED: atomic { LIVE;                                                                   /* ErrFull */
       y=1; do :: y>M -> break :: else -> assert(!((snap>>y)&1) || PR(y)>=PR(m)); y++ od; y=0;
       printf("P%d: full, m%d is refused\n",me,m); snap=0; ms[m]=4; m++; if :: m>last -> m=255 :: else fi }
#endif
#endif

UNLOCK: atomic { LIVE; if :: MINE && LD==D -> Lheld=0; Lown=0; printf("C%d unlocks\n",me) :: else -> printf("C%d unlock: fenced\n",me); clearlists() fi; ep=0; D=0; SEP; mk[me]=0; ar=0; snap=0;
#if DELAYED
       elig=0;
#endif
#ifdef EVICT
       if :: role==SEND -> if :: m==255 -> m=0; fin=fin|(1<<me); goto END :: else -> goto GET fi :: else fi;
#endif
       if :: m==0 -> n++; if :: n<OPS -> goto ACQ :: else -> n=0; fin=fin|(1<<me); goto END fi :: else fi }
     atomic { LIVE; assert(ms[m]==2 && st[i]==W(TKN,me,0)); ms[m]=3; printf("C%d delivers m%d, frees slot %d\n",me,m,i);
       st[i]=FREE; body[i]=0; nxt[i]=0; m=0; i=0; n++; if :: n<OPS -> goto ACQ :: else -> n=0; fin=fin|(1<<me); goto END fi }
FENCED: atomic { LIVE; printf("C%d is fenced\n",me); assert(!MINE); tp=0; clearlists(); mk[me]=0; ep=0; ar=0; b=0; D=0; H=0; w=0; i=0; k=0; ins=0; snap=0; x=0; do :: x==N -> break :: else -> cs[x]=0; x++ od; x=0;
#if DELAYED
       elig=0;
#endif
       if :: role==SEND -> skip :: else -> m=0 fi; goto ACQ }
END: skip
}

#if DELAYED
proctype Clock() { byte v=1; do :: v>M -> break :: v<=M && DL(v) -> atomic { due=due|(1<<v); v++ } :: v<=M && !DL(v) -> v++ od }
#endif

/* When nothing moves any more: everybody alive is done or rightly blocked, and nothing is lost or leaked. */
proctype Final() {
  timeout ->
  d_step {
    x=2; do :: x<2+NC -> assert(ISDEAD(x) || ((fin>>x)&1)); x++ :: else -> break od;
    Df=LD; count();
    if :: !Lheld ->
       assert(A[Lar].consumed + qn == hseq);
       x=0; k2=0;
       do :: x==N -> break
          :: else -> if :: A[Lar].node[x]!=0 -> assert(A[Lar].node[x]==st[x]); assert(ms[body[x]]==1); k2++ :: else fi; x++ od;
       assert(k2 + (hseq-Df) == qn);
       cne=A[Lar].consumed
    :: else -> assert(ISDEAD(Lown)) fi;
    /* what a rebuild would find now */
    k2=0; x=0;
    do :: x==N -> break
       :: else -> if :: KIND(st[x])==RDY && SEQ(st[x])<=Df && (TAG(st[x])!=0 || EV(x,SEQ(st[x]))) -> k2++; if :: ms[body[x]]==1 -> qn-- :: else fi :: else fi; x++ od;
    x=hslot; y=hseq;
    do :: y<=Df -> break
       :: else -> assert(KIND(st[x])==RDY && SEQ(st[x])==y && ms[body[x]]==1); k2++; qn--; x=nxt[x]; y-- od;
    assert(qn==0);
    if :: Lheld -> cne=hseq-k2 :: else fi;
    x=0;
    do :: x==2 -> break
       :: else -> if :: ISDEAD(x) || ((fin>>x)&1) -> skip
           :: else ->
#ifdef EVICT
              y=0; do :: y<N && st[y]!=FREE -> y++ :: else -> break od;
              assert(Lheld || y==N)
#else
              y=0; do :: y<N && st[y]!=FREE -> y++ :: else -> break od;
              assert(Lheld || hseq+1>MAX+cne || y==N)
#endif
           fi; x++ od
  }
}
#if DEATHS>0
proctype Killer() {
  byte v;
  do :: ndead<DEATHS -> atomic {
#ifdef VICTIMS
       v=VICTIMS;
#else
       if :: v=0 :: v=1 :: v=2 :: v=3
#if NC>2
       :: v=4
#endif
       fi;
#endif
       ndead++; if :: !(fin & (1<<v)) -> dead=dead|(1<<v); printf("process %d DIES\n",v) :: else fi; v=0 }
  :: ndead==DEATHS -> break
  :: break od
}
#endif
init { atomic {
  run Member(0,SEND,1,M0);
#if M1>0
  run Member(1,SEND,M0+1,M);
#else
  fin=fin|2;
#endif
  run Member(2,ROLE2,0,0); run Member(3,ROLE3,0,0);
#if NC>2
  run Member(4,ROLE4,0,0);
#endif
#if DEATHS>0
  run Killer();
#endif
#if DELAYED
  run Clock();
#endif
  run Final() } }
